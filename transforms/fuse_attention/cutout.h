// A region cut out of its graph.
//
// The cut-out is a graph of its own: the region's operators, and above and below them what only
// rearranges or scales, so that K and V enter before they are repeated for their query heads and
// their gradients leave after the sum over those heads. Every operand gets its own copy of that
// chain: where K is V, or Q is K, sharing it would merge queries with keys. Factor analysis of the
// cut-out then tells apart what the whole graph cannot: in scores [b, h, q, k] both sequence
// dimensions are one index there, and two here.
#pragma once

#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "transforms/fuse_attention/graph_facts.h"

namespace autosp::transforms::fusion {

enum class OperandRole : uint8_t { kQuery, kKey, kValue, kOutputGradient };
enum class ResultRole : uint8_t {
  kOutput,
  kQueryGradient,
  kKeyGradient,
  kValueGradient,
  kBiasGradient,
  kSinkGradient,
  kScaleGradient  // of what scales the scores, per head say
};

std::string_view name_of(OperandRole role);
std::string_view name_of(ResultRole role);

using OperandPlace = std::pair<NodeId, size_t>;  // operand k of a node of the whole graph
using OperandRoles = std::map<OperandPlace, OperandRole>;
using ResultRoles = std::map<ResultRole, NodeId>;  // the node that ends in it

// An operand of the region that is neither a contraction's nor known to be uniform: a mask, a bias,
// a factor, before the views above its use.
struct TermUse {
  ValueId inside;
  ValueId root;  // in the whole graph
};

struct Cutout {
  ir::Graph graph;
  std::vector<ValueId> original;             // by value of `graph`: what it stands for
  std::map<ValueId, ValueId> inside;         // the region's own values, by value of the whole graph
  std::map<OperandPlace, ValueId> operands;  // inputs, by the contraction operand they lead to
  std::map<OperandPlace, ValueId> roots;     // the same in the whole graph
  std::vector<TermUse> terms;
  std::map<ValueId, double> uniform;        // inputs whose every element is this
  std::vector<ValueId> leaves;              // inputs from which masks are computed
  std::map<ResultRole, ValueId> results;    // in `graph`, when roles are given
  std::map<ResultRole, ValueId> result_of;  // in the whole graph
  std::vector<NodeId> nodes;                // of the whole graph: the region and what follows it
};

struct RegionRoles {
  OperandRoles operands;
  ResultRoles results;
  NodeId scores;                         // the contraction of queries and keys
  std::optional<NodeId> score_gradient;  // of the output's gradient and values
};

// Without roles every contraction operand has an input of its own; with roles, each role has one.
// Refuses a region whose operators have no factors, or whose operands of one role differ.
Cutout cut_out(const GraphFacts& facts, const Region& region, const RegionRoles* roles);

}  // namespace autosp::transforms::fusion

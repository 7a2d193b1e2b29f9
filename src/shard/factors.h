// Factor analysis: which index every dimension of every value runs over.
//
// Dimensions are related by the operators' rules alone, never by their extents: sequence 64 and
// hidden 64 stay apart. Constants, and values computed from constants alone, say nothing about
// which of their dimensions is the sequence, so a constant gets fresh dimensions at every use;
// parameters likewise.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ir/graph.h"
#include "shard/atoms.h"
#include "shard/rule.h"

namespace autosp::shard {

// Addresses one atom of a value: dimension `dim`, the `atom`-th of its atoms.
struct AtomPosition {
  int dim = 0;
  int atom = 0;
  auto operator<=>(const AtomPosition&) const = default;
};

// The atoms of every dimension of a value.
using DimAtoms = std::vector<AtomList>;

enum class Role : uint8_t {
  kParallel,   // in a result: each index is computed on its own
  kReduction,  // in operands only: summed over
  kCoupled,    // cannot be split
};

// One factor of one node's iteration space.
struct Factor {
  AtomId atom;         // on the operand side
  AtomId result_atom;  // on the result side; differs from `atom` across a window
  Role role = Role::kParallel;
  std::vector<std::optional<AtomPosition>> operands;  // where it stands in operand k
  std::vector<std::optional<AtomPosition>> results;
  // operand index = result index + *window. An index of the atoms is a block of so many of them
  // where smaller atoms follow in the dimension.
  std::optional<int64_t> window;
  int64_t operand_block = 1;
  int64_t result_block = 1;
};

struct NodeFactors {
  std::vector<Factor> factors;
  // Windows over dimensions of several atoms, at the major ones, which are coupled in `factors`:
  // the sequence may be split at them where whole blocks are enough.
  std::vector<Factor> block_windows;
  std::vector<std::vector<size_t>> linear;  // see Rule::linear
  bool results_sum = false;                 // see Rule::results_sum
  std::vector<bool> is_data;                // by operand: false for shapes, axes, bounds
  std::string opaque;  // why the node has no factors: it is computed whole on every rank; or empty
};

// By node: indices into NodeFactors::factors.
using FactorChoice = std::vector<std::vector<size_t>>;

class FactorAnalysis {
 public:
  // `is_parameter`, by value, marks the inputs that are parameters.
  FactorAnalysis(const ir::Graph& graph, const std::vector<bool>& is_parameter);

  const ir::Graph& graph() const { return *graph_; }
  const Atoms& atoms() const { return atoms_; }

  // The atoms of a value; for a leaf that gets fresh dimensions at every use, see operand_dims.
  const DimAtoms& dims(ValueId value) const { return dims_[value.index()]; }
  // The atoms of operand k of a node.
  const DimAtoms& operand_dims(NodeId node, size_t k) const;
  const NodeFactors& node(NodeId node) const { return nodes_[node.index()]; }

  ClassId class_of(AtomId atom) const { return atoms_.class_of(atom); }

  // Whether a value gets fresh dimensions at every use: constants and parameters.
  bool is_fresh_per_use(ValueId value) const { return fresh_[value.index()]; }

  // "[b=2, s=40, (h=8 d=12)]" with atom ids, for explain and debugging.
  std::string describe_dims(const DimAtoms& dims) const;

 private:
  DimAtoms make_dims(const ir::Shape& shape);
  DimAtoms& operand_slot(NodeId node, size_t k);
  void relate(NodeId id);
  void relate_view(NodeId id);
  void resolve_all();
  void collect(NodeId id);
  void collect_view(NodeId id);

  const ir::Graph* graph_;
  Atoms atoms_;
  std::vector<bool> fresh_;
  std::vector<DimAtoms> dims_;                         // by value
  std::vector<std::vector<DimAtoms>> fresh_operands_;  // by node and operand, for fresh leaves
  std::vector<std::optional<Rule>> rules_;             // by node
  std::vector<std::map<Symbol, AtomList>> symbols_;    // by node: what a rule's symbols became
  std::vector<NodeFactors> nodes_;
};

// By node: computed from data inputs and constants alone (masks, positions, counts).
std::vector<bool> data_only_nodes(const FactorAnalysis& analysis);

}  // namespace autosp::shard

// Operator rules: all that the planner knows about an operator.
//
// An operator has an iteration space of factors; each dimension of each operand and result is an
// ordered list of factors, major to minor. A rule is printed, and for operators whose attributes do
// not matter written, as one line:
//
//   MatMul    ... m k, ... k n -> ... m n
//   Softmax   x y! -> x y!
//
//   ...    leading dimensions, matched from the right as in numpy broadcasting
//   y!     coupled: elements of y meet in a way that splitting it would break
//   (b s)  a dimension made of two factors
//   1      a dimension of extent 1 (any dimension of extent 1 holds no factor)
//   _      an operand that is not data: a shape, axes, bounds
//
// A factor found in operands only is a reduction, by sum: splitting it leaves partial sums.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "ir/graph.h"

namespace autosp::shard {

using Symbol = std::string;
using DimFactors = std::vector<Symbol>;        // of one dimension, major to minor
using ValueFactors = std::vector<DimFactors>;  // one entry per dimension

// Operand factor `from` and result factor `to` run over one index, shifted:
// operand index = result index + offset. Slice has offset >= 0, Pad <= 0.
struct Window {
  Symbol from;
  Symbol to;
  int64_t offset = 0;
};

struct Rule {
  std::vector<std::optional<ValueFactors>> operands;  // nullopt: not data (or absent)
  std::vector<ValueFactors> results;
  std::vector<Symbol> coupled;
  // Sets of operands in which the operator is jointly linear: when exactly those operands are
  // partial sums over ranks (the others whole), so are the results.
  std::vector<std::vector<size_t>> linear;
  std::vector<Window> windows;
  // A result that lacks a factor which others hold is summed over it; otherwise it is the same for
  // every index of it.
  bool results_sum = false;
  // Sizes of symbols that appear only inside multi-factor dimensions.
  std::map<Symbol, int64_t> sizes;
  // Every dimension keeps its elements in row-major order: factors are found by unifying the
  // flattened operand 0 with the flattened result (Reshape and its kin).
  bool is_view = false;

  bool is_coupled(const Symbol& symbol) const;
  std::string to_string() const;  // the one-line form
};

// The rule of a node, or nullopt for an operator that has none (it is then gathered and
// replicated).
std::optional<Rule> rule_of(const ir::Graph& graph, const ir::Node& node);

// Operators that have a rule, as "op" or "domain::op", sorted.
std::vector<std::string> operators_with_rules();

// Parses the one-line form; throws InternalError on a malformed row.
Rule parse_rule(const std::string& row, const ir::Graph& graph, const ir::Node& node);

}  // namespace autosp::shard

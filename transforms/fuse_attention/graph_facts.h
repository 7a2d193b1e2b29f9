// What the analyses of one graph's attention regions share.
//
// A value with two home positions (two sequence dimensions) is born by a contraction (attention
// scores and their gradient) or by broadcasting (masks, biases, random numbers). The former, and
// every quadratic value computed from them, are the core. A contraction of channels, of values that
// have both positions before, makes no pairs: so is a bias computed from representations of pairs.
// Masks stay out of it, so one that all layers share does not join their regions; and so does what
// is only summed into the gradient of a bias, which layers may share likewise.
#pragma once

#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "shard/attention.h"
#include "shard/factors.h"

namespace autosp::transforms::fusion {

// Why a region stays decomposed. Thrown inside the pass only, and caught per region.
struct Refused {
  std::string reason;
};

template <typename... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) {
  throw Refused{fmt::format(format, std::forward<Args>(args)...)};
}

bool is_contraction(const ir::Node& node);
// Reshape, Transpose and their kin; Expand is apart, for it is not a view going down.
bool is_view(const ir::Node& node);
// Each result element comes from the operand elements at its position.
bool is_elementwise(const ir::Node& node);

class GraphFacts {
 public:
  GraphFacts(const shard::FactorAnalysis& analysis, const shard::HomeClasses& home,
             const std::vector<bool>& is_parameter);

  const ir::Graph& graph() const { return analysis_->graph(); }
  const shard::FactorAnalysis& analysis() const { return *analysis_; }
  const shard::HomeClasses& home() const { return *home_; }

  int home_positions(ValueId value) const { return home_positions_[value.index()]; }
  bool is_core(ValueId value) const { return core_[value.index()]; }
  // Whether neither a contraction of core values nor a reduction of them to a row follows.
  bool is_tail(NodeId node) const { return tail_[node.index()]; }
  // Whether a contraction mixes pairs (scores of heads, say) before they are normalised.
  bool is_mixed_and_normalised(const ir::Node& node) const;
  bool is_output(ValueId value) const { return output_[value.index()]; }
  const std::vector<NodeId>& readers(ValueId value) const { return readers_[value.index()]; }
  NodeId producer(ValueId value) const { return graph().value(value).producer; }

  // The first value that is computed alike: masks that were copied per reader are one again.
  ValueId representative(ValueId value) const { return representative_[value.index()]; }

  // The one number that every element of the value is known to be. Parameters are never known.
  std::optional<double> uniform(ValueId value) const { return uniform_[value.index()]; }

 private:
  // Whether a contraction's result has positions that no operand has together.
  bool makes_pairs(const ir::Node& node) const;
  // Whether a contraction sums core values over one of their positions, or multiplies them.
  bool sums_pairs(const ir::Node& node) const;
  void find_core();
  void find_tails();
  void find_representatives(const std::vector<bool>& is_parameter);
  void find_uniform(const std::vector<bool>& is_parameter);

  const shard::FactorAnalysis* analysis_;
  const shard::HomeClasses* home_;
  std::vector<int> home_positions_;
  std::vector<bool> core_;
  std::vector<bool> tail_;  // by node
  std::vector<bool> output_;
  std::vector<std::vector<NodeId>> readers_;
  std::vector<ValueId> representative_;
  std::vector<std::optional<double>> uniform_;
};

// A connected component of operators over core values, in graph order.
struct Region {
  std::vector<NodeId> nodes;
  std::vector<NodeId> born;    // contractions that make core values from others
  std::vector<NodeId> ending;  // contractions that make others from core values
};

// The regions of a graph, in graph order. Reductions that leave a region and come back (the maximum
// and the sum of a softmax written out) are inside it, with what is between.
std::vector<Region> find_regions(const GraphFacts& facts);

}  // namespace autosp::transforms::fusion

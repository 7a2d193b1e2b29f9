// Scores that are scaled together with what was added to them, (scores + bias) / c, and scores that
// something is taken from, scores - bias, which is scores + -bias.
//
// Models that add a mask or a bias before they divide by the square root of the width compute the
// same as those that add it afterwards. Before a softmax the factor goes to both summands, so that
// the scores are scores again and the rest is a bias. Factors above one stay where they are: the
// lowest number, which masks, would become minus infinity.
#include <cmath>
#include <unordered_set>

#include "ir/count_readers.h"
#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"

namespace autosp::transforms {

using ir::Graph;
using ir::Node;
using ir::Rewriter;

namespace {

// The operands of a node that its result consists of, if it neither bends nor cuts them.
std::vector<ValueId> passed_on(const Node& node) {
  static const std::unordered_set<std::string_view> kBoth = {"Add", "Sub", "Mul", "Div"};
  static const std::unordered_set<std::string_view> kFirst = {"Softmax", "Cast", "Reshape",
                                                              "Transpose", "Identity"};
  if (!node.domain.empty()) return {};
  if (kBoth.contains(node.op)) return {node.input(0), node.input(1)};
  if (kFirst.contains(node.op)) return {node.input(0)};
  if (node.is("Where")) return {node.input(1), node.input(2)};
  return {};
}

// Floats that reach a softmax through sums, selections, conversions and views alone.
std::vector<bool> summands_of_softmax(const Graph& graph) {
  std::vector<bool> result(graph.values().size(), false);
  for (size_t n = graph.nodes().size(); n-- > 0;) {
    const Node& node = graph.nodes()[n];
    if (!node.is("Softmax") && !result[node.output(0).index()]) continue;
    for (ValueId input : passed_on(node)) {
      if (is_floating(graph.type(input).dtype)) result[input.index()] = true;
    }
  }
  return result;
}

// What consists of a contraction's result alone, or among others.
std::vector<bool> made_of_products(const Graph& graph) {
  std::vector<bool> result(graph.values().size(), false);
  for (const Node& node : graph.nodes()) {
    bool made = node.is("MatMul") || node.is("Gemm");
    for (ValueId input : passed_on(node)) made = made || result[input.index()];
    if (made) result[node.output(0).index()] = true;
  }
  return result;
}

class FactorDistributor {
 public:
  explicit FactorDistributor(Rewriter& rewriter)
      : rewriter_(rewriter),
        graph_(rewriter.from()),
        readers_(ir::count_readers(graph_)),
        leads_to_softmax_(summands_of_softmax(graph_)),
        holds_scores_(made_of_products(graph_)) {}

  // Mul(Add(a, b), c) and Div(Add(a, b), c), or with Sub.
  bool rewrite(const Node& node) {
    if (node.is("Sub")) return rewrite_difference(node);
    if (!node.is("Mul") && !node.is("Div")) return false;
    if (!leads_to_softmax_[node.output(0).index()]) return false;
    for (const size_t k : {0, 1}) {
      if (k == 1 && node.is("Div")) break;
      const ValueId factor = node.input(1 - k);
      if (sum_of(node.input(k)) == nullptr || !shrinks(node, factor)) continue;
      rewriter_.map(node.output(0), scaled(node.input(k), node, factor));
      return true;
    }
    return false;
  }

 private:
  // Of scores and what is none: Sub(scores, Mul(b, c)) is Add(scores, Mul(b, -c)).
  bool rewrite_difference(const Node& node) {
    const bool of_scores = holds_scores_[node.input(0).index()];
    if (!of_scores || holds_scores_[node.input(1).index()]) return false;
    if (!leads_to_softmax_[node.output(0).index()]) return false;
    ir::Builder& build = rewriter_.build();
    const ValueId taken = node.input(1);
    ValueId added;
    const Node* product = graph_.producer(taken);
    for (const size_t k : {0, 1}) {
      if (added || product == nullptr || !product->is("Mul")) break;
      const ValueId factor = product->input(1 - k);
      if (!graph_.is_constant(factor) || graph_.type(factor).num_elements() != 1) continue;
      const double number = graph_.constant(factor).value_as_double(0);
      const ValueId other = rewriter_.mapped(product->input(k));
      if (build.shape(other) != graph_.shape(taken)) continue;
      added = build.binary("Mul", other, build.scalar_like(other, -number));
    }
    if (!added) added = build.unary("Neg", rewriter_.mapped(taken));
    rewriter_.map(node.output(0), build.binary("Add", rewriter_.mapped(node.input(0)), added));
    return true;
  }

  // The sum or difference that a value is, where nothing else reads it.
  const Node* sum_of(ValueId value) const {
    const Node* node = graph_.producer(value);
    const bool is_sum = node != nullptr && (node->is("Add") || node->is("Sub"));
    return is_sum && readers_[value.index()] == 1 ? node : nullptr;
  }

  ValueId scaled(ValueId value, const Node& scaling, ValueId factor) {
    ir::Builder& build = rewriter_.build();
    if (const Node* sum = sum_of(value)) {
      const ValueId a = scaled(sum->input(0), scaling, factor);
      const ValueId b = scaled(sum->input(1), scaling, factor);
      return build.binary(sum->op, a, b);
    }
    return build.binary(scaling.op, rewriter_.mapped(value), rewriter_.mapped(factor));
  }

  bool shrinks(const Node& node, ValueId factor) const {
    if (!graph_.is_constant(factor) || graph_.type(factor).num_elements() != 1) return false;
    const double number = std::fabs(graph_.constant(factor).value_as_double(0));
    return node.is("Mul") ? number > 0 && number <= 1 : number >= 1 && std::isfinite(number);
  }

  Rewriter& rewriter_;
  const Graph& graph_;
  std::vector<size_t> readers_;         // by value; outputs of the graph are read
  std::vector<bool> leads_to_softmax_;  // by value
  std::vector<bool> holds_scores_;      // by value
};

}  // namespace

Graph distribute_score_factors(const Graph& graph) {
  Rewriter rewriter(graph);
  FactorDistributor distributor(rewriter);
  for (const Node& node : graph.nodes()) {
    if (!distributor.rewrite(node)) rewriter.copy(node);
  }
  return std::move(rewriter).finish();
}

}  // namespace autosp::transforms

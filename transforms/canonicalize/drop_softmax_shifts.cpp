// Softmax without a subtracted maximum, forward and backward.
//
// Models subtract a row's maximum before a softmax to keep it from overflowing, which a softmax
// does by itself. The gradient then goes through the maximum too: the row's sum of the softmax's
// gradient is put where the maximum was. That sum is zero, since shifting a row changes no weight.
#include <algorithm>
#include <unordered_set>

#include "ir/known_values.h"
#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"

namespace autosp::transforms {

using ir::Graph;
using ir::Node;
using ir::Rewriter;

namespace {

class ShiftDropper {
 public:
  explicit ShiftDropper(Rewriter& rewriter) : rewriter_(rewriter), graph_(rewriter.from()) {}

  bool rewrite(const Node& node) {
    return unshifted(node) || sum_of_gradient(node) || scattered_zeros(node) || plus_zeros(node);
  }

 private:
  // Softmax(x - max(x)) is Softmax(x).
  bool unshifted(const Node& node) {
    if (!node.is("Softmax") && !node.is("LogSoftmax")) return false;
    const Node* difference = produced_by(node.input(0), "Sub");
    if (difference == nullptr) return false;
    const Node* maximum = produced_by(difference->input(1), "ReduceMax");
    const bool of_the_row = maximum != nullptr && maximum->input(0) == difference->input(0) &&
                            keeps_rows(*maximum) && reduced_axis(*maximum) == axis_of(node);
    if (!of_the_row) return false;
    rewriter_.copy(node, {rewriter_.mapped(difference->input(0))});
    return true;
  }

  // The row's sum of the gradient of a softmax, perhaps negated, is zero.
  bool sum_of_gradient(const Node& node) {
    if (!node.is("ReduceSum")) return false;
    ValueId gradient = node.input(0);
    if (const Node* negated = produced_by(gradient, "Neg")) gradient = negated->input(0);
    const auto axis = reduced_axis(node);
    if (!axis || !is_gradient(gradient, *axis)) return false;
    const ir::Type& type = graph_.type(node.output(0));
    ir::Builder& build = rewriter_.build();
    const ValueId zeros =
        build.expand(build.scalar(type.dtype, 0), type.shape, graph_.name_of(node.output(0)));
    return become_zeros(node, zeros);
  }

  // Zeros put among zeros.
  bool scattered_zeros(const Node& node) {
    if (!node.is("ScatterElements")) return false;
    const ValueId data = rewriter_.mapped(node.input(0));
    const std::string reduction = node.attributes.get_string("reduction", "none");
    const bool zeros = (reduction == "none" || reduction == "add") &&
                       zeros_.contains(rewriter_.mapped(node.input(2))) &&
                       ir::is_zero(rewriter_.to(), data);
    return zeros && become_zeros(node, data);
  }

  bool plus_zeros(const Node& node) {
    if (!node.is("Add")) return false;
    for (const size_t k : {0, 1}) {
      const ValueId other = node.input(1 - k);
      if (!zeros_.contains(rewriter_.mapped(node.input(k)))) continue;
      if (graph_.type(other) != graph_.type(node.output(0))) continue;
      rewriter_.map(node.output(0), rewriter_.mapped(other));
      return true;
    }
    return false;
  }

  bool become_zeros(const Node& node, ValueId zeros) {
    rewriter_.map(node.output(0), zeros);
    zeros_.insert(zeros);
    return true;
  }

  // dy * p - p * sum(dy * p), with p a softmax along `axis`.
  bool is_gradient(ValueId value, size_t axis) const {
    const Node* difference = produced_by(value, "Sub");
    if (difference == nullptr) return false;
    const ValueId product = difference->input(0);
    const Node* weighted = produced_by(product, "Mul");
    const Node* mean = produced_by(difference->input(1), "Mul");
    if (weighted == nullptr || mean == nullptr) return false;
    for (const size_t k : {0, 1}) {
      const ValueId weights = mean->input(k);
      const Node* softmax = produced_by(weights, "Softmax");
      const Node* sum = produced_by(mean->input(1 - k), "ReduceSum");
      if (softmax == nullptr || sum == nullptr || axis_of(*softmax) != axis) continue;
      const bool weighs = std::ranges::find(weighted->inputs, weights) != weighted->inputs.end();
      const bool same = sum->input(0) == product && keeps_rows(*sum) && reduced_axis(*sum) == axis;
      if (weighs && same) return true;
    }
    return false;
  }

  const Node* produced_by(ValueId value, std::string_view op) const {
    const Node* node = value ? graph_.producer(value) : nullptr;
    return node != nullptr && node->is(op) ? node : nullptr;
  }
  size_t axis_of(const Node& softmax) const {
    return ir::normalize_axis(softmax.attributes.get_int("axis", -1),
                              graph_.shape(softmax.output(0)).size());
  }
  static bool keeps_rows(const Node& reduction) {
    return reduction.attributes.get_int("keepdims", 1) == 1;
  }
  // The only axis that is reduced, if it is one.
  std::optional<size_t> reduced_axis(const Node& reduction) const {
    const auto axes = graph_.constant_ints(reduction.input(1));
    if (!axes || axes->size() != 1) return std::nullopt;
    return ir::normalize_axis((*axes)[0], graph_.shape(reduction.input(0)).size());
  }

  Rewriter& rewriter_;
  const Graph& graph_;
  std::unordered_set<ValueId> zeros_;  // of the new graph
};

}  // namespace

Graph drop_softmax_shifts(const Graph& graph) {
  Rewriter rewriter(graph);
  ShiftDropper dropper(rewriter);
  for (const Node& node : graph.nodes()) {
    if (!dropper.rewrite(node)) rewriter.copy(node);
  }
  return std::move(rewriter).finish();
}

}  // namespace autosp::transforms

#include "transforms/training/loss_weight.h"

#include <array>

#include "ir/operator_traits.h"

namespace autosp::transforms {

namespace {

// The operand of which the result is a multiple, the same for all batches; none for other nodes.
ValueId multiplied(const ir::Graph& graph, const ir::Node& node) {
  if (ir::is_view(node) || node.is("Cast") || node.is("Neg") || node.is("Identity")) {
    return node.inputs[0];
  }
  const bool commutes = node.is("Mul");
  if (!commutes && !node.is("Div")) return ValueId();
  if (graph.is_constant(node.inputs[1])) return node.inputs[0];
  return commutes && graph.is_constant(node.inputs[0]) ? node.inputs[1] : ValueId();
}

// At most one, as what keeps a count of no tokens from being a divisor.
bool is_small_constant(const ir::Graph& graph, ValueId id) {
  return graph.is_constant(id) && graph.type(id).num_elements() == 1 &&
         graph.constant(id).value_as_double(0) <= 1;
}

// What is counted, where the divisor is at least one: a batch without valid tokens weighs nothing.
ValueId counted(const ir::Graph& graph, ValueId divisor) {
  const ir::Node* node = graph.producer(divisor);
  if (node == nullptr) return divisor;
  ValueId count;
  if (node->is("Max") && node->inputs.size() == 2) {
    if (is_small_constant(graph, node->inputs[1])) count = node->inputs[0];
    if (is_small_constant(graph, node->inputs[0])) count = node->inputs[1];
  } else if (node->is("Clip") && node->input(1) && !node->input(2)) {
    if (is_small_constant(graph, node->input(1))) count = node->inputs[0];
  } else if (ir::is_view(*node) || node->is("Cast")) {
    const ValueId below = counted(graph, node->inputs[0]);
    if (below != node->inputs[0]) count = below;
  }
  return count && graph.type(count).num_elements() == 1 ? count : divisor;
}

}  // namespace

std::optional<ValueId> loss_weight(const ir::Graph& graph, const shard::Roles& roles) {
  if (!roles.loss) return std::nullopt;
  ValueId value = graph.outputs()[*roles.loss].value;
  std::optional<ValueId> constant;  // a divisor that is the same for all batches
  while (const ir::Node* node = graph.producer(value)) {
    const bool divides = node->is("Div") && graph.type(node->inputs[1]).num_elements() == 1;
    const ValueId operand = multiplied(graph, *node);
    if (divides && !operand) return counted(graph, node->inputs[1]);
    if (divides && !constant) constant = node->inputs[1];
    if (!operand) break;
    value = operand;
  }
  return constant;
}

}  // namespace autosp::transforms

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

}  // namespace

std::optional<ValueId> loss_weight(const ir::Graph& graph, const shard::Roles& roles) {
  if (!roles.loss) return std::nullopt;
  ValueId value = graph.outputs()[*roles.loss].value;
  std::optional<ValueId> constant;  // a divisor that is the same for all batches
  while (const ir::Node* node = graph.producer(value)) {
    const bool divides = node->is("Div") && graph.type(node->inputs[1]).num_elements() == 1;
    const ValueId operand = multiplied(graph, *node);
    if (divides && !operand) return node->inputs[1];
    if (divides && !constant) constant = node->inputs[1];
    if (!operand) break;
    value = operand;
  }
  return constant;
}

}  // namespace autosp::transforms

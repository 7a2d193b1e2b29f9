#include "transforms/training/loss_weight.h"

#include <array>

#include "ir/operator_traits.h"

namespace autosp::transforms {

namespace {

// What leaves a number the quotient that it is.
bool passes_on(const ir::Node& node) {
  return ir::is_view(node) || node.is("Cast") || node.is("Neg") || node.is("Identity");
}

}  // namespace

std::optional<ValueId> loss_weight(const ir::Graph& graph, const shard::Roles& roles) {
  if (!roles.loss) return std::nullopt;
  ValueId value = graph.outputs()[*roles.loss].value;
  const ir::Node* node = graph.producer(value);
  while (node != nullptr && passes_on(*node)) {
    value = node->inputs[0];
    node = graph.producer(value);
  }
  if (node == nullptr || !node->is("Div")) return std::nullopt;
  const ValueId divisor = node->inputs[1];
  if (graph.type(divisor).num_elements() != 1) return std::nullopt;
  return divisor;
}

}  // namespace autosp::transforms

// What planning asks of an operator.
#pragma once

#include "ir/graph.h"

namespace autosp::ir {

// ONNX's operators that update parameters (Adam, Momentum, Adagrad).
inline constexpr std::string_view kTrainingDomain = "ai.onnx.preview.training";

// The result has its operand's elements in its operand's order: it needs no bytes of its own.
bool is_view(const Node& node);

// Several ranks take part in it: all that it names must run it, whoever reads the result.
inline bool is_collective(const Node& node) {
  return node.domain == kAutospDomain && node.attributes.has("group");
}

// The same of the operators that other runtimes have (transforms/spmd/lower_collectives.h).
bool is_foreign_collective(const Node& node);

// autosp::RandomUniform: random numbers that depend on their place alone (docs/random.md), so that
// any rank may draw any of them at any time, and again.
inline bool is_draw(const Node& node) {
  return node.domain == kAutospDomain && node.op == "RandomUniform";
}

// autosp::Attention or its gradient, with weights that are dropped at random.
inline bool drops_weights(const Node& node) {
  return node.domain == kAutospDomain && node.attributes.has("dropout_strides");
}

// Whether nobody reads the rows' maxima and sums of autosp::Attention but its gradients, which read
// them together.
bool only_gradients_read_statistics(const Graph& graph, const Node& attention);

// The number of the step that an operator's random numbers depend on; invalid where it has none.
inline ValueId step_operand(const Node& node) {
  if (is_draw(node)) return node.input(0);
  if (!drops_weights(node)) return {};
  return node.input(node.op == "Attention" ? 10 : 14);
}

}  // namespace autosp::ir

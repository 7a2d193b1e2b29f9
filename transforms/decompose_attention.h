// autosp::Attention and autosp::AttentionGrad (docs/attention.md) in standard operators, for
// runtimes that have no kernel for them. Scores of [batch, heads, queries, keys] exist here.
#pragma once

#include <optional>

#include "ir/graph.h"

namespace autosp::transforms {

// The graph with standard operators in the place of every fused attention.
ir::Graph decompose_attention(const ir::Graph& graph);

// The body of a function that computes the node: a graph whose inputs are the node's present
// operands and whose outputs are its present results, in order. Nullopt for other operators.
std::optional<ir::Graph> attention_body(const ir::Graph& graph, const ir::Node& node);

}  // namespace autosp::transforms

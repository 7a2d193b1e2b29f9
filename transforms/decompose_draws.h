// autosp::RandomUniform (docs/random.md) in standard operators, for runtimes that have no kernel
// for it: Philox4x32-10 in 64-bit integers, some 250 elementwise operators over the tensor. The
// numbers are the kernel's, bit for bit.
#pragma once

#include <optional>

#include "ir/graph.h"

namespace autosp::transforms {

// The graph with standard operators in the place of every draw.
ir::Graph decompose_draws(const ir::Graph& graph);

// The body of a function that computes the node, as attention_body; nullopt for other operators.
std::optional<ir::Graph> draw_body(const ir::Graph& graph, const ir::Node& node);

}  // namespace autosp::transforms

// autosp::RandomUniform (docs/random.md) in standard operators, for runtimes that have no kernel
// for it: Philox4x32-10 in 64-bit integers, some 250 elementwise operators over the tensor. The
// numbers are the kernel's, bit for bit.
#pragma once

#include <optional>

#include "ir/builder.h"
#include "ir/graph.h"
#include "reference/draws.h"

namespace autosp::transforms {

// The graph with standard operators in the place of every draw.
ir::Graph decompose_draws(const ir::Graph& graph);

// Numbers `index` (int64, any shape) of a stream, in [0, 1), as float32. `step` may be invalid: 0.
ValueId draw_numbers(ir::Builder& build, ValueId index, reference::DrawKey key, ValueId step);

// The body of a function that computes the node, as attention_body; nullopt for other operators.
std::optional<ir::Graph> draw_body(const ir::Graph& graph, const ir::Node& node);

}  // namespace autosp::transforms

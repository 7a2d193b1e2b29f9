// The names exporters give to the gradients among a training graph's outputs.
#pragma once

#include <optional>
#include <string>

#include "ir/graph.h"

namespace autosp::ir {

// The parameter whose gradient the name of an output announces ("w.grad", "w_grad", "adj_w", ...):
// an input or initializer of the graph. nullopt when the name announces none.
std::optional<ValueId> parameter_of_gradient(const Graph& graph, const std::string& output_name);

}  // namespace autosp::ir

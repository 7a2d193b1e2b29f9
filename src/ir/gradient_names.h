// The names exporters give to the gradients among a training graph's outputs.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ir/graph.h"

namespace autosp::ir {

// The names that the parameter may have whose gradient is called `output_name` ("w.grad", "w_grad",
// "adj_w", ...), likeliest first; none when the name is no gradient's.
std::vector<std::string_view> gradient_stems(std::string_view output_name);

// The name of the gradient that ONNX Runtime's training graphs add into the input of this name
// ("w_grad" for "w_grad.accumulation.buffer"); nullopt when it is no such input.
std::optional<std::string_view> gradient_of_buffer(std::string_view input_name);

// The parameter whose gradient the name of an output announces ("w.grad", "w_grad", "adj_w", ...):
// an input or initializer of the graph. nullopt when the name announces none.
std::optional<ValueId> parameter_of_gradient(const Graph& graph, const std::string& output_name);

}  // namespace autosp::ir

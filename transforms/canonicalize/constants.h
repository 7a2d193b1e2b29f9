// What about a graph is known before any input is.
#pragma once

#include <vector>

#include "ir/graph.h"

namespace autosp::transforms {

// Whether the node draws random numbers: it is never folded or merged.
bool is_random(const ir::Node& node);

// Per value: an initializer that is trained, which shows in an output that carries its name as a
// gradient (ir/gradient_names.h). A parameter is data, not a constant.
std::vector<bool> find_parameter_constants(const ir::Graph& graph);

// Per value: computable without inputs and parameters (constants themselves included).
std::vector<bool> find_input_independent(const ir::Graph& graph);

// The one value of a floating constant whose elements are all equal; nullopt otherwise.
std::optional<double> uniform_constant(const ir::Graph& graph, ValueId value);

}  // namespace autosp::transforms

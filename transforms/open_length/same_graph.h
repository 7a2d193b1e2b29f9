// Whether two graphs are the same computation, written the same way.
#pragma once

#include <optional>
#include <string>

#include "ir/graph.h"

namespace autosp::transforms {

bool same_attributes(const ir::Attributes& a, const ir::Attributes& b);

// Where two graphs differ in anything but the names of their values: "node 'layer0/scores:
// MatMul'". Nullopt where they do not.
std::optional<std::string> first_difference(const ir::Graph& a, const ir::Graph& b);

}  // namespace autosp::transforms

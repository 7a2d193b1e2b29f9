// Keys by which equal computations are found: equal keys, equal results.
#pragma once

#include <string>
#include <vector>

#include "ir/graph.h"

namespace autosp::transforms {

// Operator, attributes, result types and these operands.
std::string node_key(const ir::Graph& graph, const ir::Node& node,
                     const std::vector<ValueId>& operands);

// Type and content.
std::string constant_key(const ir::Tensor& tensor);

// Constants larger than this are told apart by identity: comparing them would cost too much.
inline constexpr int64_t kComparedConstantBytes = int64_t{1} << 22;

}  // namespace autosp::transforms

// How often values are read.
#pragma once

#include <vector>

#include "ir/graph.h"

namespace autosp::ir {

// By value, the operands of nodes that it is, and the outputs of the graph.
std::vector<size_t> count_readers(const Graph& graph);

}  // namespace autosp::ir

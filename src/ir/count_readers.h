// How often values are read, and by whom.
#pragma once

#include <string_view>
#include <vector>

#include "ir/graph.h"

namespace autosp::ir {

// By value, the operands of nodes that it is, and the outputs of the graph.
std::vector<size_t> count_readers(const Graph& graph);

// Whether nothing reads the value, if there is one, but nodes of this operator.
bool is_only_read_by(const Graph& graph, ValueId value, std::string_view op);

}  // namespace autosp::ir

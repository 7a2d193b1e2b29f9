// What a node of a rank graph costs.
#pragma once

#include "cost/operator_cost.h"
#include "ir/graph.h"

namespace autosp::cli {

cost::Cost node_cost(const ir::Graph& graph, const ir::Node& node);

// Whether its products are of 32-bit floats, or wider ones.
bool is_wide(const ir::Graph& graph, const ir::Node& node);

}  // namespace autosp::cli

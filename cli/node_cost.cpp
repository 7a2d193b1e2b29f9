#include "node_cost.h"

#include <vector>

namespace autosp::cli {

namespace {

std::vector<ir::Type> types(const ir::Graph& graph, const std::vector<ValueId>& values) {
  std::vector<ir::Type> result;
  for (ValueId id : values) result.push_back(id ? graph.type(id) : ir::Type{});
  return result;
}

}  // namespace

cost::Cost node_cost(const ir::Graph& graph, const ir::Node& node) {
  return cost::operator_cost(node, types(graph, node.inputs), types(graph, node.outputs),
                             cost::visible_fraction(graph, node));
}

bool is_wide(const ir::Graph& graph, const ir::Node& node) {
  return node.input(0) && ir::element_size(graph.type(node.input(0)).dtype) >= 4;
}

}  // namespace autosp::cli

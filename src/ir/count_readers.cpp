#include "ir/count_readers.h"

#include <algorithm>

namespace autosp::ir {

std::vector<size_t> count_readers(const Graph& graph) {
  std::vector<size_t> result(graph.values().size(), 0);
  for (const Node& node : graph.nodes()) {
    for (ValueId input : node.inputs) {
      if (input) ++result[input.index()];
    }
  }
  for (const Output& output : graph.outputs()) ++result[output.value.index()];
  return result;
}

bool is_only_read_by(const Graph& graph, ValueId value, std::string_view op) {
  if (!value) return true;
  const auto is_it = [&](const Output& output) { return output.value == value; };
  return std::ranges::none_of(graph.outputs(), is_it) &&
         std::ranges::all_of(graph.nodes(), [&](const Node& node) {
           return node.op == op || std::ranges::find(node.inputs, value) == node.inputs.end();
         });
}

}  // namespace autosp::ir

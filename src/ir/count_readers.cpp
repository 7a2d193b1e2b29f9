#include "ir/count_readers.h"

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

}  // namespace autosp::ir

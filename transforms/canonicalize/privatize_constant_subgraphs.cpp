// A private copy of every input-independent value for each of its readers.
//
// A mask or a rotary table that is computed once and read by every layer ties those layers' factors
// together, and a table whose two dimensions are equal by accident (S×S read as H×H) would tie
// hidden to sequence. The planner gives a constant fresh factors at every use; this pass makes the
// same true of what is computed from constants alone, by copying the nodes that compute it for each
// edge into the rest of the graph. Copies that end up with one layout merge again after planning.
#include <algorithm>

#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/canonicalize/constants.h"

namespace autosp::transforms {

using ir::Graph;
using ir::Node;
using ir::Rewriter;

namespace {

// The nodes that compute `value`, in topological order. All are input-independent.
std::vector<NodeId> cone_of(const Graph& graph, ValueId value) {
  std::vector<NodeId> pending = {graph.value(value).producer};
  std::vector<bool> seen(graph.nodes().size(), false);
  std::vector<NodeId> cone;
  seen[pending[0].index()] = true;
  while (!pending.empty()) {
    const NodeId id = pending.back();
    pending.pop_back();
    cone.push_back(id);
    for (ValueId input : graph.node(id).inputs) {
      if (!input || graph.value(input).kind != ir::ValueKind::kResult) continue;
      const NodeId producer = graph.value(input).producer;
      if (!seen[producer.index()]) pending.push_back(producer);
      seen[producer.index()] = true;
    }
  }
  std::ranges::sort(cone);
  return cone;
}

}  // namespace

Graph privatize_constant_subgraphs(const Graph& graph) {
  const std::vector<bool> independent = find_input_independent(graph);
  Rewriter rewriter(graph);
  // The value in the new graph; computed once more for this reader when it is input-independent.
  const auto own_copy = [&](ValueId value) {
    if (value && independent[value.index()] && graph.value(value).kind == ir::ValueKind::kResult) {
      for (NodeId id : cone_of(graph, value)) rewriter.copy(graph.node(id));
    }
    return rewriter.mapped(value);
  };
  for (const Node& node : graph.nodes()) {
    const bool inside = std::ranges::all_of(
        node.outputs, [&](ValueId output) { return !output || independent[output.index()]; });
    if (inside) continue;
    std::vector<ValueId> inputs;
    for (ValueId input : node.inputs) inputs.push_back(own_copy(input));
    rewriter.copy(node, std::move(inputs));
  }
  for (const ir::Output& output : graph.outputs()) own_copy(output.value);
  return std::move(rewriter).finish();
}

}  // namespace autosp::transforms

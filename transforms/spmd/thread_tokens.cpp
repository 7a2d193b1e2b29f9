#include "transforms/spmd/thread_tokens.h"

#include <algorithm>

#include "ir/operator_traits.h"
#include "ir/rewriter.h"

namespace autosp::transforms {

ir::Graph thread_tokens(const ir::Graph& graph) {
  auto left = std::ranges::count_if(graph.nodes(), ir::is_collective);
  ValueId token;
  return ir::rewrite_nodes(graph, [&](ir::Rewriter& rewriter, const ir::Node& node) {
    if (!ir::is_collective(node)) return false;
    std::vector<ValueId> inputs = rewriter.mapped(node.inputs);
    if (token) {
      inputs.resize(std::max<size_t>(inputs.size(), 2));
      inputs[1] = token;
    }
    std::vector<ir::Type> types = {graph.type(node.outputs[0])};
    std::vector<std::string> names = {graph.name_of(node.outputs[0])};
    if (--left > 0) {  // nobody waits for the last one
      types.push_back({ir::DataType::kInt64, {}});
      names.push_back(names[0] + "~token");
    }
    const NodeId id =
        rewriter.to().add_node(node.op, std::move(inputs), std::move(types), node.attributes,
                               node.domain, std::move(names), node.name);
    rewriter.to().set_origin(id, node.origin);
    rewriter.to().set_phase(id, node.phase);
    const ir::Node& made = rewriter.to().node(id);
    rewriter.map(node.outputs[0], made.outputs[0]);
    token = made.output(1);
    return true;
  });
}

}  // namespace autosp::transforms

// Computes equal things once.
//
// Two nodes are equal when operator, attributes and operands are; constants are equal by content.
// Exporters repeat index guards, masks and transposes per use, and gradient graphs repeat the
// forward pass's; each copy would be planned, and perhaps exchanged, on its own. Random operators
// draw anew at each node and are never merged. Parameters that happen to hold equal numbers (every
// norm weight starts at 1) are different parameters.
#include <unordered_map>

#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/canonicalize/constants.h"
#include "transforms/canonicalize/node_key.h"
#include "transforms/spmd/program.h"

namespace autosp::transforms {

using ir::Graph;
using ir::Node;
using ir::Rewriter;

Graph eliminate_common_subexpressions(const Graph& graph) {
  Rewriter rewriter(graph);
  const std::vector<bool> parameter = find_parameter_constants(graph);
  std::unordered_map<std::string, ValueId> constants;
  for (size_t v = 0; v < graph.values().size(); ++v) {
    const ir::Value& value = graph.values()[v];
    if (value.kind != ir::ValueKind::kConstant || parameter[v]) continue;
    if (value.type.num_bytes() > kComparedConstantBytes) continue;
    const ValueId here = rewriter.mapped(ValueId(v));
    rewriter.map(ValueId(v), constants.emplace(constant_key(value.constant), here).first->second);
  }
  std::unordered_map<std::string, const Node*> seen;
  for (const Node& node : graph.nodes()) {
    // A recomputed node equals a forward one by intention.
    const bool recomputed = node.phase == name_of(Phase::kRecompute);
    if (is_random(node) || recomputed || node.domain == ir::kAutospDomain) {
      rewriter.copy(node);
      continue;
    }
    const auto [found, is_new] =
        seen.emplace(node_key(graph, node, rewriter.mapped(node.inputs)), &node);
    if (is_new) {
      rewriter.copy(node);
      continue;
    }
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (node.outputs[k]) {
        rewriter.map(node.outputs[k], rewriter.mapped(found->second->outputs[k]));
      }
    }
  }
  return std::move(rewriter).finish();
}

}  // namespace autosp::transforms

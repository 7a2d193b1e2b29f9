// Evaluates what is known before any input is.
//
// Exporters leave shape arithmetic, index guards and position vectors in the graph; later passes
// match on constants. But a mask over two sequence dimensions is also input-independent, and
// written out it would cost S² bytes and lose its structure (DESIGN: never fold anything with two
// sequence dimensions). Dimensions are not matched by value, so the rule is about growth: a result
// is folded when its rank is at most 1 or it has no more elements than the largest operand. An
// S×S mask is born by an operator that grows, and everything computed from it then has an operand
// that is not constant.
#include <algorithm>

#include "ir/rewriter.h"
#include "reference/kernels.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/canonicalize/constants.h"

namespace autosp::transforms {

using ir::Graph;
using ir::Node;
using ir::Rewriter;

namespace {

bool grows(const Graph& graph, const Node& node) {
  int64_t largest = 0;
  for (ValueId input : node.inputs) {
    if (input) largest = std::max(largest, graph.type(input).num_elements());
  }
  return std::ranges::any_of(node.outputs, [&](ValueId output) {
    return output && graph.type(output).rank() > 1 && graph.type(output).num_elements() > largest;
  });
}

}  // namespace

Graph fold_constants(const Graph& graph) {
  const std::vector<bool> parameter = find_parameter_constants(graph);
  std::vector<bool> is_output(graph.values().size(), false);
  for (const ir::Output& output : graph.outputs()) is_output[output.value.index()] = true;

  return rewrite_nodes(graph, [&](Rewriter& rewriter, const Node& node) {
    if (is_random(node) || node.domain == ir::kAutospDomain) return false;
    std::vector<ir::Tensor> operands;
    for (ValueId input : node.inputs) {
      const ValueId now = input ? rewriter.mapped(input) : ValueId();
      if (now && (!rewriter.to().is_constant(now) || parameter[input.index()])) return false;
      operands.push_back(now ? rewriter.to().constant(now) : ir::Tensor());
    }
    const bool kept = std::ranges::any_of(node.outputs, [&](ValueId output) {
      return output && is_output[output.index()];  // an output is computed, not an initializer
    });
    if (kept || grows(graph, node) || reference::find_kernel(node.domain, node.op) == nullptr) {
      return false;
    }
    const std::vector<ir::Tensor> results = reference::evaluate(graph, node, operands);
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      const ValueId output = node.outputs[k];
      if (!output) continue;
      rewriter.map(output, rewriter.to().add_constant(results[k], graph.name_of(output)));
    }
    return true;
  });
}

}  // namespace autosp::transforms

// Evaluates what is known before any input is.
//
// Exporters leave shape arithmetic, index guards and position vectors in the graph; later passes
// match on constants. But a mask over two sequence dimensions is also input-independent, and
// written out it would cost S² bytes and lose its structure (DESIGN: never fold anything with two
// sequence dimensions). Dimensions are not matched by value, so the rule is about growth: a result
// is folded when its rank is at most 1 or it has no more elements than its operands together. An
// S×S mask is born by an operator that grows, and everything computed from it then has an operand
// that is not constant. Constants that are only repeated along some axes are folded without the
// repeats (see broadcast_constants.h).
#include <algorithm>
#include <unordered_set>

#include "ir/rewriter.h"
#include "reference/kernels.h"
#include "transforms/canonicalize/broadcast_constants.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/canonicalize/constants.h"

namespace autosp::transforms {

using ir::Graph;
using ir::Node;
using ir::Rewriter;

namespace {

bool grows(const Graph& graph, const Node& node) {
  int64_t operands = 0;
  for (ValueId input : node.inputs) {
    if (input) operands += graph.type(input).num_elements();
  }
  return std::ranges::any_of(node.outputs, [&](ValueId output) {
    return output && graph.type(output).rank() > 1 && graph.type(output).num_elements() > operands;
  });
}

class Folder {
 public:
  explicit Folder(const Graph& graph) : graph_(graph), is_output_(graph.values().size(), false) {
    const std::vector<bool> parameter = find_parameter_constants(graph);
    for (size_t v = 0; v < parameter.size(); ++v) {
      if (parameter[v]) parameters_.insert(graph.values()[v].name);
    }
    for (const ir::Output& output : graph.outputs()) is_output_[output.value.index()] = true;
  }

  bool fold(Rewriter& rewriter, const Node& node) const {
    const bool kept = std::ranges::any_of(node.outputs, [&](ValueId output) {
      return output && is_output_[output.index()];  // an output is computed, not an initializer
    });
    if (kept || is_random(node) || node.domain == ir::kAutospDomain) return false;
    if (fold_whole(rewriter, node)) return true;
    const ValueId repeated = fold_repeated(
        rewriter, node, [&](ValueId value) { return is_foldable(rewriter.to(), value); });
    if (repeated) rewriter.map(node.output(0), repeated);
    return repeated.valid();
  }

 private:
  bool is_foldable(const Graph& to, ValueId constant) const {
    return !parameters_.contains(to.name_of(constant));
  }

  bool fold_whole(Rewriter& rewriter, const Node& node) const {
    std::vector<ir::Tensor> operands;
    for (ValueId input : node.inputs) {
      const ValueId now = input ? rewriter.mapped(input) : ValueId();
      if (now && !(rewriter.to().is_constant(now) && is_foldable(rewriter.to(), now))) return false;
      operands.push_back(now ? rewriter.to().constant(now) : ir::Tensor());
    }
    if (grows(graph_, node) || reference::find_kernel(node.domain, node.op) == nullptr) {
      return false;
    }
    const std::vector<ir::Tensor> results = reference::evaluate(graph_, node, operands);
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      const ValueId output = node.outputs[k];
      if (!output) continue;
      rewriter.map(output, rewriter.to().add_constant(results[k], graph_.name_of(output)));
    }
    return true;
  }

  const Graph& graph_;
  std::vector<bool> is_output_;
  std::unordered_set<std::string> parameters_;
};

}  // namespace

Graph fold_constants(const Graph& graph) {
  const Folder folder(graph);
  return rewrite_nodes(
      graph, [&](Rewriter& rewriter, const Node& node) { return folder.fold(rewriter, node); });
}

}  // namespace autosp::transforms

#include "transforms/canonicalize/constants.h"

#include <algorithm>
#include <unordered_set>

#include "ir/gradient_names.h"

namespace autosp::transforms {

using ir::Graph;
using ir::Node;
using ir::ValueKind;

bool is_random(const Node& node) {
  static const std::unordered_set<std::string> kOps = {
      "RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike",
      "Bernoulli",     "Multinomial",       "Dropout"};
  return kOps.contains(node.op);
}

std::vector<bool> find_parameter_constants(const Graph& graph) {
  std::vector<bool> result(graph.values().size(), false);
  for (const ir::Output& output : graph.outputs()) {
    const auto parameter = ir::parameter_of_gradient(graph, output.name);
    if (!parameter || !graph.is_constant(*parameter)) continue;
    result[parameter->index()] = is_floating(graph.type(*parameter).dtype);
  }
  for (const std::string& name : graph.declared_parameters) {
    const auto parameter = graph.find(name);
    if (parameter && graph.is_constant(*parameter)) result[parameter->index()] = true;
  }
  return result;
}

std::vector<bool> find_input_independent(const Graph& graph) {
  const std::vector<bool> parameter = find_parameter_constants(graph);
  std::vector<bool> result(graph.values().size(), false);
  for (size_t v = 0; v < result.size(); ++v) {
    result[v] = graph.values()[v].kind == ValueKind::kConstant && !parameter[v];
  }
  for (const Node& node : graph.nodes()) {
    const bool known = !is_random(node) && node.domain != ir::kAutospDomain &&
                       std::ranges::all_of(node.inputs, [&](ValueId input) {
                         return !input || result[input.index()];
                       });
    if (!known) continue;
    for (ValueId output : node.outputs) {
      if (output) result[output.index()] = true;
    }
  }
  return result;
}

std::optional<double> uniform_constant(const Graph& graph, ValueId value) {
  if (!graph.is_constant(value) || graph.type(value).num_elements() == 0) return std::nullopt;
  const ir::Tensor& tensor = graph.constant(value);
  const double first = tensor.value_as_double(0);
  for (int64_t k = 1; k < tensor.num_elements(); ++k) {
    if (tensor.value_as_double(k) != first) return std::nullopt;
  }
  return first;
}

}  // namespace autosp::transforms

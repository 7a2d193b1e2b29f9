#include "transforms/canonicalize/constants.h"

#include <algorithm>
#include <unordered_set>

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
  std::unordered_set<std::string> outputs;
  for (const ir::Output& output : graph.outputs()) outputs.insert(output.name);
  std::vector<bool> result(graph.values().size(), false);
  for (size_t v = 0; v < result.size(); ++v) {
    const ir::Value& value = graph.values()[v];
    if (value.kind != ValueKind::kConstant || !is_floating(value.type.dtype)) continue;
    result[v] = outputs.contains(value.name + ".grad") || outputs.contains(value.name + "_grad") ||
                outputs.contains("adj_" + value.name);
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

bool is_zero(const Graph& graph, ValueId value) {
  static const std::unordered_set<std::string> kKeepsZero = {
      "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose",
      "Expand",   "Slice",   "Cast",    "Neg",       "Gather"};
  while (true) {
    if (graph.is_constant(value)) return graph.constant(value).all_zero();
    const Node* node = graph.producer(value);
    if (node == nullptr || !node->domain.empty()) return false;
    if (node->op == "ConstantOfShape") {
      const ir::Tensor* fill = node->attributes.get_tensor("value");
      return fill == nullptr || fill->all_zero();
    }
    if (!kKeepsZero.contains(node->op)) return false;
    value = node->input(0);
  }
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

#include "ir/known_values.h"

#include <string>
#include <unordered_set>

namespace autosp::ir {

bool is_zero(const Graph& graph, ValueId value) {
  // Operators whose results hold nothing but elements of operand 0, perhaps negated or converted.
  static const std::unordered_set<std::string> kKeepZero = {
      "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose",
      "Expand",   "Slice",   "Cast",    "Neg",       "Gather",  "Pad"};
  while (value) {
    if (graph.is_constant(value)) return graph.constant(value).all_zero();
    const Node* node = graph.producer(value);
    if (node == nullptr || !node->domain.empty()) return false;
    if (node->op == "ConstantOfShape") {
      const Tensor* fill = node->attributes.get_tensor("value");
      return fill == nullptr || fill->all_zero();
    }
    if (!kKeepZero.contains(node->op)) return false;
    if (node->op == "Pad" && node->input(2) && !is_zero(graph, node->input(2))) return false;
    value = node->input(0);
  }
  return false;
}

}  // namespace autosp::ir

#include "ir/operator_traits.h"

#include <unordered_set>

namespace autosp::ir {

bool is_view(const Node& node) {
  static const std::unordered_set<std::string_view> kOps = {"Reshape", "Squeeze", "Unsqueeze",
                                                            "Flatten", "Identity"};
  return node.domain.empty() && kOps.contains(node.op);
}

bool is_elementwise(const Node& node) {
  static const std::unordered_set<std::string_view> kOps = {
      "Abs",     "Add",    "And",      "Atan",       "Ceil",        "Celu",
      "Clip",    "Cos",    "Div",      "Elu",        "Equal",       "Erf",
      "Exp",     "Floor",  "Gelu",     "Greater",    "HardSigmoid", "GreaterOrEqual",
      "IsInf",   "IsNaN",  "Less",     "HardSwish",  "LeakyRelu",   "LessOrEqual",
      "Log",     "Max",    "Mean",     "Min",        "Mish",        "Mod",
      "Mul",     "Neg",    "Not",      "Or",         "PRelu",       "Pow",
      "Relu",    "Round",  "Selu",     "Reciprocal", "Sigmoid",     "Sign",
      "Sin",     "Sqrt",   "Softplus", "Softsign",   "Sub",         "Sum",
      "Tan",     "Tanh",   "Where",    "Xor"};
  return node.domain.empty() && kOps.contains(node.op);
}

}  // namespace autosp::ir

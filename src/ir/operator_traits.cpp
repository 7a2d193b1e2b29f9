#include "ir/operator_traits.h"

#include <unordered_set>

namespace autosp::ir {

bool is_view(const Node& node) {
  static const std::unordered_set<std::string_view> kOps = {"Reshape", "Squeeze", "Unsqueeze",
                                                            "Flatten", "Identity"};
  return node.domain.empty() && kOps.contains(node.op);
}

}  // namespace autosp::ir

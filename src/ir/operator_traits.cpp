#include "ir/operator_traits.h"

#include <unordered_set>

namespace autosp::ir {

bool is_view(const Node& node) {
  static const std::unordered_set<std::string_view> kOps = {"Reshape", "Squeeze", "Unsqueeze",
                                                            "Flatten", "Identity"};
  return node.domain.empty() && kOps.contains(node.op);
}

bool is_foreign_collective(const Node& node) {
  if (node.is("DistCollective")) return true;
  return node.domain == kMicrosoftDomain &&
         (node.op == "AllReduce" || node.op == "AllGather" || node.op == "AllToAll");
}

}  // namespace autosp::ir

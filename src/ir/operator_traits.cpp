#include "ir/operator_traits.h"

#include <algorithm>
#include <unordered_set>

namespace autosp::ir {

bool only_gradients_read_statistics(const Graph& graph, const Node& attention) {
  const auto is_statistic = [&](ValueId value) {
    return value && (value == attention.output(1) || value == attention.output(2));
  };
  return std::ranges::none_of(graph.outputs(), is_statistic, &Output::value) &&
         std::ranges::all_of(graph.nodes(), [&](const Node& node) {
           return node.op == "AttentionGrad" || std::ranges::none_of(node.inputs, is_statistic);
         });
}

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

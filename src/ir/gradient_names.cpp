#include "ir/gradient_names.h"

#include <string_view>

namespace autosp::ir {

namespace {

std::optional<ValueId> find_leaf(const Graph& graph, std::string_view name) {
  const auto value = graph.find(name);
  if (value && graph.value(*value).kind != ValueKind::kResult) return value;
  return std::nullopt;
}

}  // namespace

std::optional<ValueId> parameter_of_gradient(const Graph& graph, const std::string& output_name) {
  const std::string_view name = output_name;
  for (const std::string_view suffix :
       {".grad", "_grad", ".gradient", "_gradient", "/grad", "@grad"}) {
    if (!name.ends_with(suffix)) continue;
    if (const auto found = find_leaf(graph, name.substr(0, name.size() - suffix.size()))) {
      return found;
    }
  }
  for (const std::string_view prefix : {"grad_", "adj_", "d_", "grad.", "gradient_"}) {
    if (!name.starts_with(prefix)) continue;
    if (const auto found = find_leaf(graph, name.substr(prefix.size()))) return found;
  }
  return std::nullopt;
}

}  // namespace autosp::ir

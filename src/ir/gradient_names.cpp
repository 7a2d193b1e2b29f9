#include "ir/gradient_names.h"

namespace autosp::ir {

namespace {

std::optional<ValueId> find_leaf(const Graph& graph, std::string_view name) {
  const auto value = graph.find(name);
  if (value && graph.value(*value).kind != ValueKind::kResult) return value;
  return std::nullopt;
}

}  // namespace

std::vector<std::string_view> gradient_stems(std::string_view output_name) {
  std::vector<std::string_view> stems;
  for (const std::string_view suffix :
       {".grad", "_grad", ".gradient", "_gradient", "/grad", "@grad"}) {
    if (!output_name.ends_with(suffix)) continue;
    stems.push_back(output_name.substr(0, output_name.size() - suffix.size()));
  }
  for (const std::string_view prefix : {"grad_", "adj_", "d_", "grad.", "gradient_"}) {
    if (output_name.starts_with(prefix)) stems.push_back(output_name.substr(prefix.size()));
  }
  return stems;
}

std::optional<std::string_view> gradient_of_buffer(std::string_view input_name) {
  constexpr std::string_view kSuffix = ".accumulation.buffer";
  if (!input_name.ends_with(kSuffix)) return std::nullopt;
  return input_name.substr(0, input_name.size() - kSuffix.size());
}

std::optional<ValueId> parameter_of_gradient(const Graph& graph, const std::string& output_name) {
  for (const std::string_view stem : gradient_stems(output_name)) {
    if (const auto found = find_leaf(graph, stem)) return found;
  }
  return std::nullopt;
}

}  // namespace autosp::ir

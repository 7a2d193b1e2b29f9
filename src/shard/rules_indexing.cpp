// Gathers and scatters: the indexed axis is coupled, the axes of the index are parallel (gather)
// or, where updates are added into zeros, reductions (scatter).
#include <algorithm>

#include "ir/known_values.h"
#include "shard/rule_table.h"

namespace autosp::shard {

namespace {

void couple(Rule& rule, const DimFactors& factors) {
  rule.coupled.insert(rule.coupled.end(), factors.begin(), factors.end());
}

std::optional<Rule> gather(const ir::Graph& graph, const ir::Node& node) {
  const ValueFactors table = numbered_factors(graph.shape(node.inputs[0]), "t");
  const ValueFactors index = numbered_factors(graph.shape(node.inputs[1]), "i");
  const size_t axis = ir::normalize_axis(node.attributes.get_int("axis", 0), table.size());
  Rule rule;
  rule.operands = {table, index};
  ValueFactors result(table.begin(), table.begin() + static_cast<int64_t>(axis));
  result.insert(result.end(), index.begin(), index.end());
  result.insert(result.end(), table.begin() + static_cast<int64_t>(axis) + 1, table.end());
  rule.results = {result};
  couple(rule, table[axis]);
  rule.linear = {{0}};
  return rule;
}

// Axes on which data and index agree run together. Along the indexed axis the data are read by
// position and the index is free. Along an axis on which the index is shorter than the data, it
// meets the data's first entries: neither can be split.
struct ElementwiseIndex {
  ValueFactors data;
  ValueFactors index;
  std::vector<Symbol> coupled;
  std::vector<Symbol> along_axis;  // of the index
};

ElementwiseIndex elementwise_index(const ir::Graph& graph, const ir::Node& node) {
  const ir::Shape& data = graph.shape(node.inputs[0]);
  const ir::Shape& index = graph.shape(node.inputs[1]);
  const size_t axis = ir::normalize_axis(node.attributes.get_int("axis", 0), data.size());
  ElementwiseIndex result{numbered_factors(data, "t"), numbered_factors(index, "i"), {}, {}};
  for (size_t d = 0; d < data.size(); ++d) {
    if (d != axis && data[d] == index[d]) {
      result.data[d] = result.index[d] = numbered_factors(data)[d];
      continue;
    }
    result.coupled.insert(result.coupled.end(), result.data[d].begin(), result.data[d].end());
    auto& of_index = d == axis ? result.along_axis : result.coupled;
    of_index.insert(of_index.end(), result.index[d].begin(), result.index[d].end());
  }
  return result;
}

std::optional<Rule> gather_elements(const ir::Graph& graph, const ir::Node& node) {
  const ElementwiseIndex factors = elementwise_index(graph, node);
  Rule rule;
  rule.operands = {factors.data, factors.index};
  rule.results = {factors.index};
  rule.coupled = factors.coupled;
  rule.linear = {{0}};
  return rule;
}

bool adds_into_zeros(const ir::Graph& graph, const ir::Node& node) {
  return node.attributes.get_string("reduction", "none") == "add" && is_zero(graph, node.inputs[0]);
}

std::optional<Rule> scatter_elements(const ir::Graph& graph, const ir::Node& node) {
  const ElementwiseIndex factors = elementwise_index(graph, node);
  Rule rule;
  rule.operands = {factors.data, factors.index, factors.index};
  rule.results = {factors.data};
  rule.coupled = factors.coupled;
  if (adds_into_zeros(graph, node)) {
    rule.linear = {{2}};
  } else {
    couple(rule, factors.along_axis);
  }
  return rule;
}

std::optional<Rule> gather_nd(const ir::Graph& graph, const ir::Node& node) {
  const ir::Shape& data_shape = graph.shape(node.inputs[0]);
  const ir::Shape& index_shape = graph.shape(node.inputs[1]);
  const auto batch = static_cast<size_t>(node.attributes.get_int("batch_dims", 0));
  const auto depth = static_cast<size_t>(index_shape.back());
  ValueFactors data = numbered_factors(data_shape, "t");
  ValueFactors index = numbered_factors(index_shape, "i");
  for (size_t d = 0; d < batch; ++d) index[d] = data[d];
  Rule rule;
  couple(rule, index.back());
  for (size_t d = batch; d < batch + depth; ++d) couple(rule, data[d]);
  ValueFactors result(index.begin(), index.end() - 1);
  result.insert(result.end(), data.begin() + static_cast<int64_t>(batch + depth), data.end());
  rule.operands = {data, index};
  rule.results = {result};
  rule.linear = {{0}};
  return rule;
}

std::optional<Rule> scatter_nd(const ir::Graph& graph, const ir::Node& node) {
  const ValueFactors data = numbered_factors(graph.shape(node.inputs[0]), "t");
  const ValueFactors index = numbered_factors(graph.shape(node.inputs[1]), "i");
  const auto depth = static_cast<size_t>(graph.shape(node.inputs[1]).back());
  ValueFactors updates(index.begin(), index.end() - 1);
  updates.insert(updates.end(), data.begin() + static_cast<int64_t>(depth), data.end());
  Rule rule;
  rule.operands = {data, index, updates};
  rule.results = {data};
  couple(rule, index.back());
  for (size_t d = 0; d < depth; ++d) couple(rule, data[d]);
  if (adds_into_zeros(graph, node)) {
    rule.linear = {{2}};
  } else {
    for (size_t d = 0; d + 1 < index.size(); ++d) couple(rule, index[d]);
  }
  return rule;
}

std::optional<Rule> one_hot(const ir::Graph& graph, const ir::Node& node) {
  const ValueFactors index = numbered_factors(graph.shape(node.inputs[0]), "i");
  const size_t axis = ir::normalize_axis(node.attributes.get_int("axis", -1), index.size() + 1);
  Rule rule;
  rule.operands = {index, std::nullopt, std::nullopt};
  ValueFactors result = index;
  result.insert(result.begin() + static_cast<int64_t>(axis), DimFactors{"depth"});
  if (graph.shape(node.outputs[0])[axis] == 1) result[axis].clear();
  rule.coupled = {"depth"};
  rule.results = {result};
  return rule;
}

}  // namespace

std::vector<RuleRow> indexing_rules() {
  return {{"Gather", gather},        {"GatherElements", gather_elements},
          {"GatherND", gather_nd},   {"ScatterElements", scatter_elements},
          {"ScatterND", scatter_nd}, {"OneHot", one_hot}};
}

}  // namespace autosp::shard

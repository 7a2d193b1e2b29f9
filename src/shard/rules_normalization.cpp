// Operators in which the elements along some axes meet: softmax, norms, reductions, scans, sorts.
#include <algorithm>

#include "shard/rule_table.h"

namespace autosp::shard {

namespace {

Rule same_shape(const ir::Graph& graph, const ir::Node& node) {
  const ValueFactors factors = numbered_factors(graph.shape(node.inputs[0]));
  Rule rule;
  rule.operands = {factors};
  rule.results = {factors};
  rule.operands.resize(node.inputs.size());
  return rule;
}

std::optional<Rule> softmax(const ir::Graph& graph, const ir::Node& node) {
  Rule rule = same_shape(graph, node);
  const size_t axis =
      ir::normalize_axis(node.attributes.get_int("axis", -1), rule.results[0].size());
  rule.coupled = rule.results[0][axis];
  return rule;
}

std::optional<Rule> layer_normalization(const ir::Graph& graph, const ir::Node& node) {
  Rule rule = same_shape(graph, node);
  const ValueFactors x = rule.results[0];
  const size_t axis = ir::normalize_axis(node.attributes.get_int("axis", -1), x.size());
  const ir::Shape& shape = graph.shape(node.inputs[0]);
  for (size_t k = 1; k < node.inputs.size(); ++k) {  // scale and bias broadcast against x
    if (node.inputs[k]) rule.operands[k] = broadcast_factors(graph.shape(node.inputs[k]), shape);
  }
  for (size_t k = 1; k < node.outputs.size(); ++k) {  // mean, inverse deviation
    ValueFactors statistics = x;
    for (size_t d = axis; d < x.size(); ++d) statistics[d].clear();
    rule.results.push_back(node.outputs[k] ? statistics : ValueFactors{});
  }
  for (size_t d = axis; d < x.size(); ++d) {
    rule.coupled.insert(rule.coupled.end(), x[d].begin(), x[d].end());
  }
  return rule;
}

// Normal form: axes are a constant operand.
std::optional<Rule> reduction(const ir::Graph& graph, const ir::Node& node, bool is_sum) {
  const auto axes = graph.constant_ints(node.input(1));
  if (!axes) return std::nullopt;
  Rule rule = same_shape(graph, node);
  const size_t rank = rule.results[0].size();
  std::vector<bool> reduced(rank, false);
  for (int64_t axis : *axes) reduced[ir::normalize_axis(axis, rank)] = true;
  const bool keep = node.attributes.get_int("keepdims", 1) != 0;
  ValueFactors result;
  for (size_t d = 0; d < rank; ++d) {
    const DimFactors& factors = (*rule.operands[0])[d];
    if (!reduced[d]) {
      result.push_back(factors);
    } else if (keep) {
      result.emplace_back();
    }
    if (reduced[d] && !is_sum) {
      rule.coupled.insert(rule.coupled.end(), factors.begin(), factors.end());
    }
  }
  rule.results = {result};
  if (is_sum) rule.linear = {{0}};
  return rule;
}

std::optional<Rule> arg_reduction(const ir::Graph& graph, const ir::Node& node) {
  Rule rule = same_shape(graph, node);
  const size_t axis =
      ir::normalize_axis(node.attributes.get_int("axis", 0), rule.results[0].size());
  rule.coupled = rule.results[0][axis];
  if (node.attributes.get_int("keepdims", 1) != 0) {
    rule.results[0][axis].clear();
  } else {
    rule.results[0].erase(rule.results[0].begin() + static_cast<int64_t>(axis));
  }
  return rule;
}

std::optional<Rule> cumulative_sum(const ir::Graph& graph, const ir::Node& node) {
  const auto axis = graph.constant_ints(node.input(1));
  if (!axis) return std::nullopt;
  Rule rule = same_shape(graph, node);
  rule.coupled = rule.results[0][ir::normalize_axis(axis->at(0), rule.results[0].size())];
  rule.linear = {{0}};
  return rule;
}

std::optional<Rule> top_k(const ir::Graph& graph, const ir::Node& node) {
  Rule rule = same_shape(graph, node);
  const size_t axis =
      ir::normalize_axis(node.attributes.get_int("axis", -1), rule.results[0].size());
  rule.coupled = rule.results[0][axis];
  rule.results[0][axis] = {"k"};
  rule.coupled.emplace_back("k");
  rule.results.push_back(rule.results[0]);
  return rule;
}

}  // namespace

std::vector<RuleRow> normalization_rules() {
  std::vector<RuleRow> rows = {{"Softmax", softmax},
                               {"LogSoftmax", softmax},
                               {"LayerNormalization", layer_normalization},
                               {"CumSum", cumulative_sum},
                               {"TopK", top_k},
                               {"ArgMax", arg_reduction},
                               {"ArgMin", arg_reduction}};
  rows.push_back({"ReduceSum", [](const auto& graph, const auto& node) {
                    return reduction(graph, node, true);
                  }});
  for (const char* op : {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1",
                         "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"}) {
    rows.push_back(
        {op, [](const auto& graph, const auto& node) { return reduction(graph, node, false); }});
  }
  return rows;
}

}  // namespace autosp::shard

// Attention and its gradient (docs/attention.md): batch, KV heads, query heads per KV head and
// queries run free; keys and head width meet. So do the values' columns in the gradient.
#include "shard/rule_table.h"

namespace autosp::shard {

namespace {

class AttentionRule {
 public:
  // `query` and `optional` are the positions of those operands; key, value and the rest follow.
  AttentionRule(const ir::Graph& graph, const ir::Node& node, size_t query, size_t optional)
      : graph_(graph), node_(node), optional_(optional) {
    const ir::Shape& q = graph.shape(node.inputs[query]);
    const ir::Shape& k = graph.shape(node.inputs[query + 1]);
    const ir::Shape& v = graph.shape(node.inputs[query + 2]);
    if (k[1] > 1) heads_.emplace_back("k");
    if (q[1] > k[1]) heads_.emplace_back("g");
    rule_.sizes = {{"k", k[1]}, {"g", k[1] == 0 ? 1 : q[1] / k[1]}};
    rule_.coupled = {"j", "d"};
    query_ = drop_ones({{"b"}, heads_, {"i"}, {"d"}}, q);
    key_ = drop_ones({{"b"}, {"k"}, {"j"}, {"d"}}, k);
    value_ = drop_ones({{"b"}, {"k"}, {"j"}, {"e"}}, v);
    output_ = drop_ones({{"b"}, heads_, {"i"}, {"e"}}, {q[0], q[1], q[2], v[3]});
    statistics_ = {output_[0], output_[1], output_[2]};
  }

  Rule forward() && {
    rule_.operands = {query_, key_, value_};
    add_optional();
    rule_.results = {output_, statistics_, statistics_};
    return std::move(rule_);
  }

  Rule gradient() && {
    rule_.operands = {output_, query_, key_, value_, output_, statistics_, statistics_};
    add_optional();
    rule_.results = {query_, key_, value_};
    if (node_.output(3)) rule_.results.push_back(of_optional(0));
    if (node_.output(4)) {
      rule_.results.resize(4);
      rule_.results.push_back(of_optional(6));
    }
    rule_.coupled.emplace_back("e");
    rule_.results_sum = true;
    rule_.linear = {{0}};
    return std::move(rule_);
  }

 private:
  static ValueFactors drop_ones(ValueFactors factors, const ir::Shape& shape) {
    for (size_t d = 0; d < shape.size(); ++d) {
      if (shape[d] == 1) factors[d].clear();
    }
    return factors;
  }

  // Of the bias, begin, end, key mask, query segment, key segment, sink or step.
  ValueFactors of_optional(size_t k) const {
    const ValueFactors rows = {{"b"}, {"i"}};
    const ValueFactors columns = {{"b"}, {"j"}};
    const ValueFactors all[] = {
        {{"b"}, heads_, {"i"}, {"j"}}, rows, rows, columns, rows, columns, {heads_}, {}};
    return drop_ones(all[k], graph_.shape(node_.inputs[optional_ + k]));
  }

  void add_optional() {
    for (size_t k = optional_; k < node_.inputs.size(); ++k) {
      if (node_.inputs[k]) {
        rule_.operands.emplace_back(of_optional(k - optional_));
      } else {
        rule_.operands.emplace_back();
      }
    }
  }

  const ir::Graph& graph_;
  const ir::Node& node_;
  size_t optional_;
  Rule rule_;
  DimFactors heads_;  // of the query heads
  ValueFactors query_;
  ValueFactors key_;
  ValueFactors value_;
  ValueFactors output_;
  ValueFactors statistics_;
};

}  // namespace

std::vector<RuleRow> attention_rules() {
  const std::string domain(ir::kAutospDomain);
  return {{"Attention",
           [](const auto& graph, const auto& node) {
             return AttentionRule(graph, node, 0, 3).forward();
           },
           domain},
          {"AttentionGrad",
           [](const auto& graph, const auto& node) {
             return AttentionRule(graph, node, 1, 7).gradient();
           },
           domain}};
}

}  // namespace autosp::shard

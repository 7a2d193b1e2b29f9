#include "shard/rule_table.h"

#include <iterator>

namespace autosp::shard {

const std::vector<RuleRow>& rule_table() {
  static const std::vector<RuleRow> kTable = [] {
    std::vector<RuleRow> table;
    for (auto* rows : {&elementwise_rules, &contraction_rules, &normalization_rules,
                       &data_movement_rules, &indexing_rules, &attention_rules}) {
      auto part = rows();
      std::move(part.begin(), part.end(), std::back_inserter(table));
    }
    return table;
  }();
  return kTable;
}

ValueFactors numbered_factors(const ir::Shape& shape, const std::string& prefix) {
  ValueFactors result(shape.size());
  for (size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] != 1) result[d] = {fmt::format("{}{}", prefix, d)};
  }
  return result;
}

ValueFactors broadcast_factors(const ir::Shape& operand, const ir::Shape& result) {
  const size_t offset = result.size() - operand.size();
  ValueFactors factors(operand.size());
  for (size_t d = 0; d < operand.size(); ++d) {
    if (operand[d] != 1) factors[d] = {fmt::format("d{}", offset + d)};
  }
  return factors;
}

}  // namespace autosp::shard

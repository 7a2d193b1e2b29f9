// The rows behind rule_of: one per operator (private to src/shard).
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "shard/rule.h"

namespace autosp::shard {

struct RuleRow {
  std::string op;
  std::function<std::optional<Rule>(const ir::Graph&, const ir::Node&)> make;
  std::string domain;
};

const std::vector<RuleRow>& rule_table();

// Contributions to the table, by kind of operator.
std::vector<RuleRow> elementwise_rules();
std::vector<RuleRow> contraction_rules();    // MatMul, Gemm, Conv
std::vector<RuleRow> normalization_rules();  // Softmax, LayerNormalization, reductions, scans
std::vector<RuleRow> data_movement_rules();  // Transpose, Reshape, Slice, Pad, Split, Concat, ...
std::vector<RuleRow> indexing_rules();       // Gather, Scatter and their kin
std::vector<RuleRow> attention_rules();      // Attention, AttentionGrad of this project's domain

// Factors d0, d1, ... one per dimension; dimensions of extent 1 hold none.
ValueFactors numbered_factors(const ir::Shape& shape, const std::string& prefix = "d");

// Factors of an operand that broadcasts against a result of factors d0, d1, ...
ValueFactors broadcast_factors(const ir::Shape& operand, const ir::Shape& result);

}  // namespace autosp::shard

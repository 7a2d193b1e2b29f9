#include "cost/operator_cost.h"

#include <algorithm>

#include "ir/operator_traits.h"

namespace autosp::cost {

std::string_view name_of(Family family) {
  switch (family) {
    case Family::kView:
      return "view";
    case Family::kProduct:
      return "product";
    case Family::kAttention:
      return "attention";
    case Family::kAttentionGrad:
      return "attention backward";
    case Family::kCollective:
      return "collective";
    case Family::kMovement:
      return "memory";
  }
  return "";
}

namespace {

using Types = std::span<const ir::Type>;

double elements(const ir::Type& type) { return static_cast<double>(type.num_elements()); }

double extent(const ir::Type& type, size_t from_the_end) {
  const size_t rank = type.shape.size();
  return from_the_end < rank ? static_cast<double>(type.shape[rank - 1 - from_the_end]) : 1.0;
}

// 2 n k for n results of which each sums over k.
double matmul(const ir::Node&, Types operands, Types results) {
  return 2 * elements(results[0]) * extent(operands[0], 0);
}

double gemm(const ir::Node& node, Types operands, Types results) {
  const bool transposed = node.attributes.get_int("transA", 0) != 0;
  return 2 * elements(results[0]) * extent(operands[0], transposed ? 1 : 0);
}

// Every result sums over a window of every channel of its group: weights [out, in / group, ...].
double convolution(const ir::Node&, Types operands, Types results) {
  const double per_output = elements(operands[1]) / static_cast<double>(operands[1].shape[0]);
  return 2 * elements(results[0]) * per_output;
}

double convolution_transpose(const ir::Node&, Types operands, Types) {
  const double per_input = elements(operands[1]) / static_cast<double>(operands[1].shape[0]);
  return 2 * elements(operands[0]) * per_input;
}

// Products over all pairs: query [B, H, Sq, D], key [.., Sk, D], value [.., Sk, E].
double pairs(const ir::Type& query, const ir::Type& key) {
  return elements(query) / extent(query, 0) * extent(key, 1);
}
// scores, and weights times values
double attention(const ir::Node&, Types operands, Types) {
  return 2 * pairs(operands[0], operands[1]) * (extent(operands[0], 0) + extent(operands[2], 0));
}
// scores again, dV, dP, dQ, dK
double attention_grad(const ir::Node&, Types operands, Types) {
  const double d = extent(operands[1], 0);
  const double e = extent(operands[3], 0);
  return 2 * pairs(operands[1], operands[2]) * (3 * d + 2 * e);
}

struct Row {
  std::string_view domain;
  std::string_view op;
  Family family;
  double (*flops)(const ir::Node&, Types operands, Types results);
};

constexpr Row kRows[] = {
    {"", "MatMul", Family::kProduct, matmul},
    {"", "Gemm", Family::kProduct, gemm},
    {"", "Conv", Family::kProduct, convolution},
    {"", "ConvTranspose", Family::kProduct, convolution_transpose},
    // The executor's, which reads operands as their transposes (transA, transB).
    {ir::kAutospDomain, "MatMul", Family::kProduct, gemm},
    {ir::kAutospDomain, "Attention", Family::kAttention, attention},
    {ir::kAutospDomain, "AttentionGrad", Family::kAttentionGrad, attention_grad},
};

}  // namespace

Cost operator_cost(const ir::Node& node, Types operands, Types results, double visible) {
  if (ir::is_view(node)) return {Family::kView, 0, 0};
  if (ir::is_collective(node)) return {Family::kCollective, 0, 0};
  Cost cost;
  for (const ir::Type& type : operands) cost.bytes += static_cast<double>(type.num_bytes());
  for (const ir::Type& type : results) cost.bytes += static_cast<double>(type.num_bytes());
  for (const Row& row : kRows) {
    if (row.op != node.op || row.domain != node.domain) continue;
    cost.family = row.family;
    cost.flops = row.flops(node, operands, results) * visible;
    return cost;
  }
  for (const ir::Type& type : results) cost.flops += elements(type);
  return cost;
}

double visible_fraction(const ir::Graph& graph, const ir::Node& node) {
  const bool gradient = node.op == "AttentionGrad";
  if (node.domain != ir::kAutospDomain || (node.op != "Attention" && !gradient)) return 1;
  // Operand positions: docs/attention.md.
  const ValueId key = node.input(gradient ? 2 : 1);
  const ValueId begin = node.input(gradient ? 8 : 4);
  const ValueId end = node.input(gradient ? 9 : 5);
  if (!begin && !end) return 1;
  const auto keys = graph.shape(key)[graph.shape(key).size() - 2];
  const auto begins = graph.constant_ints(begin);
  const auto ends = graph.constant_ints(end);
  if (!begins && !ends) return 0.5;
  const size_t rows = ends ? ends->size() : begins->size();
  double sum = 0;
  for (size_t k = 0; k < rows; ++k) {
    const int64_t from = begins ? (*begins)[k % begins->size()] : 0;
    const int64_t to = ends ? (*ends)[k % ends->size()] : keys;
    sum +=
        static_cast<double>(std::max<int64_t>(0, std::min(to, keys) - std::max<int64_t>(0, from)));
  }
  return sum / (static_cast<double>(rows) * static_cast<double>(keys));
}

}  // namespace autosp::cost

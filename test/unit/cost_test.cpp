// Work from shapes.
#include <gtest/gtest.h>

#include "cost/device.h"
#include "ir/builder.h"

namespace autosp::cost {
namespace {

using ir::DataType;
using ir::Type;

Type floats(ir::Shape shape) { return {DataType::kFloat32, std::move(shape)}; }

Cost cost_of(std::string op, std::vector<Type> operands, std::vector<Type> results,
             ir::Attributes attributes = {}, std::string domain = "") {
  ir::Node node;
  node.op = std::move(op);
  node.domain = std::move(domain);
  node.attributes = std::move(attributes);
  return operator_cost(node, operands, results);
}

TEST(OperatorCost, ProductsCountTwoPerTerm) {
  const Cost cost = cost_of("MatMul", {floats({2, 3, 5}), floats({5, 7})}, {floats({2, 3, 7})});
  EXPECT_EQ(cost.family, Family::kProduct);
  EXPECT_EQ(cost.flops, 2 * 2 * 3 * 7 * 5);
  EXPECT_EQ(cost.bytes, 4 * (30 + 35 + 42));
  EXPECT_EQ(
      cost_of("Gemm", {floats({5, 3}), floats({5, 7})}, {floats({3, 7})}, {{"transA", int64_t{1}}})
          .flops,
      2 * 3 * 7 * 5);
}

// Of the executor, which reads operands as their transposes: the same work.
TEST(OperatorCost, AbsorbedTransposesLeaveTheProduct) {
  const std::string domain(ir::kAutospDomain);
  const Cost cost = cost_of("MatMul", {floats({2, 5, 3}), floats({7, 5})}, {floats({2, 3, 7})},
                            {{"transA", int64_t{1}}, {"transB", int64_t{1}}}, domain);
  EXPECT_EQ(cost.family, Family::kProduct);
  EXPECT_EQ(cost.flops, 2 * 2 * 3 * 7 * 5);
}

// The same work, fused and not.
TEST(OperatorCost, AttentionIsItsProducts) {
  const Cost scores =
      cost_of("MatMul", {floats({1, 8, 64, 16}), floats({1, 8, 16, 64})}, {floats({1, 8, 64, 64})});
  const std::string domain(ir::kAutospDomain);
  const Type query = floats({1, 8, 64, 16});
  const Type key = floats({1, 2, 64, 16});
  EXPECT_EQ(cost_of("Attention", {query, key, key}, {query}, {}, domain).flops, 2 * scores.flops);
  EXPECT_EQ(cost_of("AttentionGrad", {query, query, key, key}, {query, key, key}, {}, domain).flops,
            5 * scores.flops);
}

TEST(OperatorCost, CausalAttentionSeesHalfThePairs) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ValueId query = graph.add_input("q", floats({1, 2, 4, 8}));
  const ValueId key = graph.add_input("k", floats({1, 2, 4, 8}));
  const ValueId end = build.constant(ir::Tensor::int64s({1, 2, 3, 4}).reshaped({1, 4}));
  const auto results = build.node("Attention", {query, key, key, {}, {}, end},
                                  {floats({1, 2, 4, 8}), floats({1, 2, 4}), floats({1, 2, 4})},
                                  {{"scale", 1.0F}}, std::string(ir::kAutospDomain), {});
  EXPECT_EQ(visible_fraction(graph, *graph.producer(results[0])), 10.0 / 16.0);
}

TEST(Device, TimeIsTheSlowerOfComputingAndMoving) {
  const Device device = *find_device("a100");
  EXPECT_EQ(seconds(device, {Family::kProduct, 120e12, 1}, true), 1);
  EXPECT_EQ(seconds(device, {Family::kProduct, 120e12, 1}, false), 0.5);
  EXPECT_EQ(seconds(device, {Family::kMovement, 1, 1.7e12}, true), 1);
  EXPECT_EQ(find_device("abacus"), std::nullopt);
}

}  // namespace
}  // namespace autosp::cost

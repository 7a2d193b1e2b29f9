#include "executor/absorb_transposes.h"

#include <gmock/gmock.h>

#include "executor/kernel_table.h"
#include "executor/run.h"
#include "ir/builder.h"

namespace autosp::executor {
namespace {

using ir::Tensor;
using ::testing::ElementsAre;

Tensor ramp(ir::Shape shape, float step) {
  std::vector<float> values(static_cast<size_t>(ir::num_elements(shape)));
  for (size_t k = 0; k < values.size(); ++k) values[k] = step * static_cast<float>(k + 1);
  return Tensor::from_values<float>(std::move(shape), values);
}

// The operators that are left.
std::vector<std::string> absorbed(const ir::Graph& graph) {
  std::vector<std::string> ops;
  const auto result = absorb_transposes(std::make_shared<const ir::Graph>(graph), cpu_kernels());
  for (const ir::Node& node : result->nodes()) ops.push_back(node.domain + ":" + node.op);
  return ops;
}

// y = a' * b' with operands of these shapes, transposed by these permutations where not empty.
ir::Graph product(ir::Shape a, std::vector<int64_t> a_permutation, ir::Shape b,
                  std::vector<int64_t> b_permutation) {
  ir::Graph graph;
  ir::Builder build(graph);
  ValueId left = graph.add_input("a", {ir::DataType::kFloat32, std::move(a)});
  ValueId right = graph.add_input("b", {ir::DataType::kFloat32, std::move(b)});
  if (!a_permutation.empty()) left = build.transpose(left, std::move(a_permutation));
  if (!b_permutation.empty()) right = build.transpose(right, std::move(b_permutation));
  graph.add_output("y", build.matmul(left, right));
  return graph;
}

// The result on the CPU's kernels and on the reference kernels, which keep the transposes.
void expect_as_reference(const ir::Graph& graph) {
  Arrays feeds;
  float step = 0.25F;
  for (ValueId input : graph.inputs()) {
    feeds[graph.name_of(input)] = ramp(graph.shape(input), step);
    step = -0.5F;
  }
  const auto shared = std::make_shared<const ir::Graph>(graph);
  RunOptions reference;
  reference.compile.kernels = &reference_kernels();
  const auto expected = run_in_threads({shared}, {feeds}, reference).ranks[0].outputs.at("y");
  const auto actual = run_in_threads({shared}, {feeds}).ranks[0].outputs.at("y");
  ASSERT_EQ(actual.shape(), expected.shape());
  for (int64_t k = 0; k < expected.num_elements(); ++k) {
    EXPECT_NEAR(actual.value_as_double(k), expected.value_as_double(k), 1e-3) << k;
  }
}

TEST(AbsorbTransposes, OfEitherOperand) {
  const ir::Graph graph = product({3, 2}, {1, 0}, {5, 3}, {1, 0});
  EXPECT_THAT(absorbed(graph), ElementsAre("autosp:MatMul"));
  expect_as_reference(graph);
}

TEST(AbsorbTransposes, OfBatches) {
  const ir::Graph graph = product({4, 3, 2}, {0, 2, 1}, {4, 5, 3}, {0, 2, 1});
  EXPECT_THAT(absorbed(graph), ElementsAre("autosp:MatMul"));
  expect_as_reference(graph);
}

TEST(AbsorbTransposes, OfOneMatrixForManyBatches) {
  expect_as_reference(product({4, 2, 3}, {}, {5, 3}, {1, 0}));
  expect_as_reference(product({4, 3, 2}, {0, 2, 1}, {3, 5}, {}));
}

TEST(AbsorbTransposes, LeavesOtherPermutationsAlone) {
  const ir::Graph graph = product({2, 4, 3}, {1, 0, 2}, {4, 3, 5}, {});
  EXPECT_THAT(absorbed(graph), ElementsAre(":Transpose", ":MatMul"));
}

TEST(AbsorbTransposes, KeepsATransposeThatIsReadOtherwise) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ValueId a = graph.add_input("a", {ir::DataType::kFloat32, {3, 2}});
  const ValueId b = graph.add_input("b", {ir::DataType::kFloat32, {3, 5}});
  const ValueId transposed = build.transpose(a, {1, 0});
  graph.add_output("y", build.matmul(transposed, b));
  graph.add_output("t", build.unary("Neg", transposed));
  EXPECT_THAT(absorbed(graph), ElementsAre(":Transpose", "autosp:MatMul", ":Neg"));
}

}  // namespace
}  // namespace autosp::executor

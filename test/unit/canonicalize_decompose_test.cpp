// Decompositions: each pass keeps the outputs of small graphs, and leaves none of its operators.
#include "transforms/canonicalize/canonicalize.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/pass_example.h"

namespace autosp::transforms {
namespace {

using ir::DataType;
using ir::Graph;
using ir::Shape;
using ir::Tensor;
using test::apply;
using test::count_nodes;
using test::Example;
using test::run_graph;

constexpr auto kFloat = DataType::kFloat32;

TEST(DecomposeMeans, SumsOverCounts) {
  for (const char* op :
       {"ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"}) {
    for (const bool keepdims : {false, true}) {
      Example e;
      const ValueId x = e.input("x", {3, 4, 5});
      e.output(e.build.reduce(op, x, {1, -1}, keepdims));
      const Graph after = apply(e.graph, decompose_means);
      EXPECT_EQ(count_nodes(after, op), 0U);
      EXPECT_EQ(count_nodes(after, "ReduceSum"), 1U);
    }
  }
}

TEST(DecomposeMeans, ReduceMeanWithoutAxesTakesAll) {
  Example e;
  const ValueId x = e.input("x", {3, 4});
  e.output(e.build.node("ReduceMean", {x}, {kFloat, {}}, {{"keepdims", int64_t{0}}}));
  EXPECT_EQ(count_nodes(apply(e.graph, decompose_means), "ReduceMean"), 0U);
}

TEST(DecomposeMeans, LogSumExpOfMinusInfinityIsMinusInfinity) {
  Example e;
  const ValueId x = e.build.constant(Tensor::filled({kFloat, {2, 3}}, -INFINITY));
  e.output(e.build.reduce("ReduceLogSumExp", x, {1}, false));
  apply(e.graph, decompose_means);
}

TEST(DecomposeMeans, MeanOfSeveralTensors) {
  Example e;
  const ValueId x = e.input("x", {3, 4});
  const ValueId y = e.input("y", {4});
  e.output(e.build.node("Mean", {x, y, x}, {kFloat, {3, 4}}));
  EXPECT_EQ(count_nodes(apply(e.graph, decompose_means), "Mean"), 0U);
}

class DecomposeBatchNorm : public testing::TestWithParam<bool> {};

TEST_P(DecomposeBatchNorm, KeepsTheResultAndTheRunningStatistics) {
  const bool training = GetParam();
  Example e;
  const ir::Type by_channel{kFloat, {4}};
  const ValueId variance = e.build.binary("Mul", e.input("deviation", {4}), e.input("more", {4}));
  const std::vector<ValueId> operands = {e.input("x", {3, 4, 5}), e.input("scale", {4}),
                                         e.input("bias", {4}), e.input("mean", {4}),
                                         e.build.unary("Abs", variance)};
  std::vector<ir::Type> results = {{kFloat, {3, 4, 5}}};
  if (training) results.insert(results.end(), {by_channel, by_channel});
  for (ValueId result : e.build.node("BatchNormalization", operands, results,
                                     {{"training_mode", static_cast<int64_t>(training)},
                                      {"epsilon", 1e-3F},
                                      {"momentum", 0.8F}})) {
    e.output(result);
  }
  EXPECT_EQ(count_nodes(apply(e.graph, decompose_means), "BatchNormalization"), 0U);
}

INSTANTIATE_TEST_SUITE_P(Modes, DecomposeBatchNorm, testing::Bool());

struct LossCase {
  std::string reduction;
  bool weighted;
  bool ignores;
  Shape inner;
};

class DecomposeLosses : public testing::TestWithParam<LossCase> {};

TEST_P(DecomposeLosses, KeepsTheLossAndTheLogProbabilities) {
  for (const std::string op : {"SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"}) {
    const LossCase& c = GetParam();
    Example e;
    Shape scores_shape = {6, 5};
    Shape labels_shape = {6};
    scores_shape.insert(scores_shape.end(), c.inner.begin(), c.inner.end());
    labels_shape.insert(labels_shape.end(), c.inner.begin(), c.inner.end());
    std::vector<ValueId> inputs = {
        e.input("scores", scores_shape),
        // The name "labels" puts -100 among the feeds.
        e.input(c.ignores ? "labels" : "classes", labels_shape, DataType::kInt64)};
    if (c.weighted) inputs.push_back(e.input("weights", {5}));
    ir::Attributes attributes{{"reduction", c.reduction}};
    if (c.ignores) attributes.set("ignore_index", int64_t{-100});
    std::vector<ir::Type> types = {{kFloat, c.reduction == "none" ? labels_shape : Shape{}}};
    const bool cross_entropy = op == "SoftmaxCrossEntropyLoss";
    if (cross_entropy) types.push_back({kFloat, scores_shape});
    const auto results = e.build.node(op, inputs, types, attributes);
    for (ValueId result : results) e.output(result);
    EXPECT_EQ(count_nodes(apply(e.graph, decompose_losses, {.num_tokens = 5}), op), 0U);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Forms, DecomposeLosses,
    testing::Values(LossCase{"mean", false, true, {}}, LossCase{"mean", true, true, {}},
                    LossCase{"mean", false, false, {}}, LossCase{"mean", true, false, {3}},
                    LossCase{"sum", false, true, {}}, LossCase{"sum", true, true, {2, 3}},
                    LossCase{"none", false, true, {}}, LossCase{"none", true, true, {3}}));

TEST(DecomposeLossesOn, ARowWithoutValidLabelAddsZeroEvenWhenItsScoresAreInfinite) {
  Example e;
  const ValueId scores = e.input("scores", {2, 3});
  const ValueId labels = e.input("labels", {2}, DataType::kInt64);
  e.output(e.build.node("SoftmaxCrossEntropyLoss", {scores, labels}, {kFloat, {}},
                        {{"ignore_index", int64_t{-100}}}));
  const std::vector<float> numbers = {INFINITY, INFINITY, 0, 1, 2, 3};
  const std::vector<int64_t> classes = {-100, 2};
  const test::Tensors feeds = {{"scores", Tensor::from_values<float>({2, 3}, numbers)},
                               {"labels", Tensor::from_values<int64_t>({2}, classes)}};
  const test::Tensors got = run_graph(decompose_losses(e.graph), feeds);
  EXPECT_NEAR(got.at("out0").value_as_double(0), 0.40760596, 1e-6);
}

// A softmax that subtracts its row's maximum, and the gradient that PyTorch writes for it.
void add_stable_softmax(Example& e, int64_t softmax_axis, int64_t maximum_axis) {
  ir::Builder& build = e.build;
  const ValueId x = e.input("x", {3, 4});
  const ValueId dy = e.input("dy", {3, 4});
  const ValueId maximum = build.reduce("ReduceMax", x, {maximum_axis}, true);
  const ValueId at = build.node("ArgMax", {x}, {DataType::kInt64, e.graph.shape(maximum)},
                                {{"axis", maximum_axis}, {"keepdims", int64_t{1}}});
  const ValueId weights = build.softmax("Softmax", build.binary("Sub", x, maximum), softmax_axis);
  const ValueId product = build.binary("Mul", dy, weights);
  const ValueId mean =
      build.binary("Mul", weights, build.reduce_sum(product, {softmax_axis}, true));
  const ValueId gradient = build.binary("Sub", product, mean);
  const ValueId of_maximum = build.reduce_sum(build.unary("Neg", gradient), {maximum_axis}, true);
  const ValueId zeros = build.expand(build.scalar(kFloat, 0), {3, 4});
  const ValueId scattered = build.node("ScatterElements", {zeros, at, of_maximum}, {kFloat, {3, 4}},
                                       {{"axis", maximum_axis}});
  e.output(weights);
  e.output(build.binary("Add", gradient, scattered));
}

TEST(DropSoftmaxShifts, TheMaximumGoesForwardAndBackward) {
  Example e;
  add_stable_softmax(e, 1, 1);
  const Graph after = apply(e.graph, drop_softmax_shifts);
  for (const char* op : {"ReduceMax", "ArgMax", "ScatterElements", "Add"}) {
    EXPECT_EQ(count_nodes(after, op), 0U) << op;
  }
}

TEST(DropSoftmaxShifts, AMaximumOverAnotherAxisStays) {
  Example e;
  add_stable_softmax(e, 1, 0);
  const Graph after = apply(e.graph, drop_softmax_shifts);
  for (const char* op : {"ReduceMax", "ArgMax", "ScatterElements", "Add"}) {
    EXPECT_EQ(count_nodes(after, op), 1U) << op;
  }
}

// softmax((x + y) op number), with the sum as an output where it is `read`.
Graph scaled_sum(const char* op, double number, bool read = false) {
  Example e;
  ir::Builder& build = e.build;
  const ValueId x = e.input("x", {3, 4});
  const ValueId sum = build.binary("Add", x, e.input("y", {3, 4}));
  if (read) e.output(sum);
  e.output(build.softmax("Softmax", build.binary(op, sum, build.scalar(kFloat, number)), 1));
  return e.graph;
}

TEST(DistributeScoreFactors, FactorsThatShrinkGoToBothSummands) {
  EXPECT_EQ(count_nodes(apply(scaled_sum("Div", 4), distribute_score_factors), "Div"), 2U);
  EXPECT_EQ(count_nodes(apply(scaled_sum("Mul", 0.25), distribute_score_factors), "Mul"), 2U);
}

// Positions halved are cut: they are no sum of halves.
TEST(DistributeScoreFactors, IntegersStay) {
  Example e;
  ir::Builder& build = e.build;
  const ValueId i = e.graph.add_input("i", {ir::DataType::kInt64, {3, 4}});
  const ValueId half =
      build.binary("Div", build.binary("Add", i, build.scalar(ir::DataType::kInt64, 1)),
                   build.scalar(ir::DataType::kInt64, 2));
  e.output(build.softmax("Softmax", build.cast(half, kFloat), 1));
  EXPECT_EQ(count_nodes(distribute_score_factors(e.graph), "Div"), 1U);
}

// The lowest number would overflow, or the sum be computed twice.
TEST(DistributeScoreFactors, OthersStay) {
  EXPECT_EQ(count_nodes(apply(scaled_sum("Mul", 4), distribute_score_factors), "Mul"), 1U);
  EXPECT_EQ(count_nodes(apply(scaled_sum("Div", 0.25), distribute_score_factors), "Div"), 1U);
  EXPECT_EQ(count_nodes(apply(scaled_sum("Div", 4, true), distribute_score_factors), "Div"), 1U);
}

// ReduceSum over these axes of x times y.
struct SumOfProducts {
  Shape x;
  Shape y;
  std::vector<int64_t> axes;
  size_t products;  // matrix products that it becomes
};

class SumsOfProducts : public testing::TestWithParam<SumOfProducts> {};

TEST_P(SumsOfProducts, KeepsTheSum) {
  for (const bool keepdims : {false, true}) {
    Example e;
    const ValueId product =
        e.build.binary("Mul", e.input("x", GetParam().x), e.input("y", GetParam().y));
    e.output(e.build.reduce_sum(product, GetParam().axes, keepdims));
    const Graph after = apply(e.graph, raise_sums_of_products);
    EXPECT_EQ(count_nodes(after, "MatMul"), GetParam().products);
    EXPECT_EQ(count_nodes(after, "Mul"), 1 - GetParam().products);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, SumsOfProducts,
    testing::Values(SumOfProducts{{2, 4, 1, 3, 5}, {2, 1, 6, 3, 5}, {-1}, 1},  // scores
                    SumOfProducts{{2, 4, 6, 3, 1}, {2, 1, 6, 3, 5}, {2}, 1},   // weighted values
                    SumOfProducts{{2, 6, 3, 4, 1}, {2, 6, 3, 1, 5}, {1}, 1},   // a state
                    SumOfProducts{{4, 5, 1}, {2, 4, 1, 6}, {1}, 1},            // of other ranks
                    SumOfProducts{{4, 1, 5, 7, 1}, {1, 6, 5, 1, 8}, {2, 3, 4}, 1},
                    SumOfProducts{{2, 4, 5}, {2, 4, 5}, {2}, 0},          // a dot product
                    SumOfProducts{{2, 4, 1}, {2, 4, 5}, {1}, 0},          // a weighted mean
                    SumOfProducts{{4, 1}, {1, 5}, {0}, 0},                // nothing inner
                    SumOfProducts{{4, 1, 5}, {1, 6, 5}, {0, 1, 2}, 0}));  // no rows

TEST(RaiseSumsOfProducts, RepeatedFactorsAreNotRepeated) {
  Example e;
  const ValueId repeated = e.build.expand(e.input("x", {2, 4, 1, 5}), {2, 4, 6, 5});
  e.output(
      e.build.reduce_sum(e.build.binary("Mul", repeated, e.input("y", {2, 1, 6, 5})), {3}, false));
  const Graph after = apply(e.graph, raise_sums_of_products);
  EXPECT_EQ(count_nodes(after, "MatMul"), 1U);
  EXPECT_EQ(count_nodes(after, "Expand"), 0U);
}

TEST(RaiseSumsOfProducts, FactorsInFloat16AreNotSummedAtOnce) {
  for (const bool sums_a_factor : {false, true}) {
    Example e;
    const ValueId x = e.input("x", {3, 4, 1, 5}, DataType::kFloat16);
    const ValueId y = e.input("y", {6, 5}, DataType::kFloat16);
    std::vector<int64_t> axes = {3};
    if (sums_a_factor) axes.push_back(0);
    e.output(e.build.reduce_sum(e.build.binary("Mul", x, y), axes, false));
    EXPECT_EQ(count_nodes(raise_sums_of_products(e.graph), "MatMul"), sums_a_factor ? 0U : 1U);
  }
}

TEST(RaiseSumsOfProducts, AProductThatIsReadOtherwiseStays) {
  Example e;
  const ValueId product = e.build.binary("Mul", e.input("x", {4, 1, 5}), e.input("y", {1, 6, 5}));
  e.output(e.build.reduce_sum(product, {2}, false));
  e.output(product);
  EXPECT_EQ(count_nodes(apply(e.graph, raise_sums_of_products), "MatMul"), 0U);
}

}  // namespace
}  // namespace autosp::transforms

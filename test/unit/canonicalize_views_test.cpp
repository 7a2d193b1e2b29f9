// Constants and views: each pass keeps the outputs of small graphs, and removes what it says.
#include "transforms/canonicalize/canonicalize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "support/pass_example.h"

namespace autosp::transforms {
namespace {

using ir::DataType;
using ir::Graph;
using ir::Tensor;
using test::apply;
using test::count_nodes;
using test::Example;

constexpr auto kFloat = DataType::kFloat32;

TEST(FoldConstants, ShapeArithmeticIsFoldedAndMasksAreNot) {
  Example e;
  const ValueId x = e.input("x", {6, 6});
  const ValueId positions =
      e.build.node("Range",
                   {e.build.scalar(DataType::kInt64, 0), e.build.scalar(DataType::kInt64, 6),
                    e.build.scalar(DataType::kInt64, 1)},
                   {DataType::kInt64, {6}});
  const ValueId causal = e.build.binary("LessOrEqual", e.build.unsqueeze(positions, {0}),
                                        e.build.unsqueeze(positions, {1}));
  e.output(e.build.where(e.build.unary("Not", causal), e.build.scalar_like(x, 0), x));
  const Graph after = apply(e.graph, fold_constants);
  EXPECT_EQ(count_nodes(after, "Range"), 0U);
  EXPECT_EQ(count_nodes(after, "Unsqueeze"), 0U);
  EXPECT_EQ(count_nodes(after, "LessOrEqual"), 1U);
  EXPECT_EQ(count_nodes(after, "Not"), 1U);
}

// Positions expanded over the batch; documents start where they jump; the mask keeps pairs of one
// document. All of it is known: there is one document.
TEST(FoldConstants, RepeatedPositionsAreFoldedWithoutTheRepeats) {
  Example e;
  const ValueId positions = e.build.expand(e.build.unsqueeze(e.range(0, 6), {0}), {2, 6});
  const ValueId first = e.build.slice(positions, 1, 0, 1);
  const ValueId one = e.build.scalar(DataType::kInt64, 1);
  const ValueId before = e.build.concat({e.build.binary("Sub", first, one), positions}, 1);
  const ValueId step =
      e.build.binary("Sub", e.build.slice(before, 1, 1, 7), e.build.slice(before, 1, 0, 6));
  const ValueId jumps =
      e.build.cast(e.build.unary("Not", e.build.binary("Equal", step, one)), DataType::kInt64);
  const ValueId document = e.build.node("CumSum", {jumps, one}, {DataType::kInt64, {2, 6}});
  const ValueId same =
      e.build.binary("Equal", e.build.unsqueeze(document, {2}), e.build.unsqueeze(document, {1}));
  const ValueId x = e.input("x", {2, 6, 6});
  const ValueId causal = e.build.binary("LessOrEqual", e.build.unsqueeze(e.range(0, 6), {0}),
                                        e.build.unsqueeze(e.range(0, 6), {1}));
  e.output(e.build.where(e.build.binary("And", causal, same), x, e.build.scalar_like(x, 0)));
  const Graph folded = apply(e.graph, fold_constants);
  EXPECT_EQ(count_nodes(folded, "CumSum"), 0U);
  EXPECT_EQ(count_nodes(folded, "Equal"), 1U);
  for (const ir::Value& value : folded.values()) {
    if (value.kind == ir::ValueKind::kConstant) {
      EXPECT_LE(value.type.num_elements(), 6);
    }
  }
  const Graph simple = apply(folded, simplify_views);
  EXPECT_EQ(count_nodes(simple, "Equal"), 0U);
  // The mask has lost its batch: what reads it broadcasts.
  EXPECT_EQ(count_nodes(simple, "LessOrEqual"), 1U);
}

TEST(FoldConstants, RepeatsAreWrittenOutWhereTheyMeet) {
  Example e;
  const ValueId x = e.input("x", {3, 4});
  const ValueId ones =
      e.build.expand(e.build.constant(Tensor::filled({kFloat, {1, 4}}, 1)), {3, 4});
  const ValueId axis = e.build.scalar(DataType::kInt64, 0);
  const ValueId sum = e.build.node("CumSum", {ones, axis}, {kFloat, {3, 4}});
  const ValueId wide = e.build.pad(e.build.slice(sum, 1, 1, 3), {0, 1}, {0, 1});
  e.output(e.build.binary("Add", x, wide));
  apply(e.graph, fold_constants);
}

TEST(FoldConstants, ParametersStay) {
  Example e;
  const ValueId x = e.input("x", {2, 3});
  const ValueId w = e.graph.add_named_constant("w", Tensor::filled({kFloat, {4, 3}}, 0.5));
  e.output(e.build.matmul(x, e.build.transpose(w, {1, 0})));
  EXPECT_EQ(count_nodes(apply(e.graph, fold_constants), "Transpose"), 0U);
  e.graph.add_output("w_grad", e.build.transpose(w, {1, 0}));
  EXPECT_EQ(count_nodes(apply(e.graph, fold_constants), "Transpose"), 2U);
}

TEST(FoldConstants, RandomOperatorsStay) {
  Example e;
  const ValueId shape = e.build.constant(Tensor::filled({kFloat, {4}}, 1));
  e.output(e.build.node("RandomUniformLike", {shape}, {kFloat, {4}}, {{"seed", 1.0F}}));
  EXPECT_EQ(count_nodes(fold_constants(e.graph), "RandomUniformLike"), 1U);
}

TEST(SimplifyViews, ChainsMerge) {
  Example e;
  const ValueId x = e.input("x", {2, 3, 4, 5});
  const ValueId transposed = e.build.transpose(e.build.transpose(x, {0, 2, 1, 3}), {3, 0, 1, 2});
  const ValueId flat = e.build.reshape(e.build.unsqueeze(transposed, {0}), {5, 24});
  e.output(e.build.unary("Neg", flat));
  const Graph after = apply(e.graph, simplify_views);
  EXPECT_EQ(count_nodes(after, "Transpose"), 1U);
  EXPECT_EQ(count_nodes(after, "Reshape"), 1U);
  EXPECT_EQ(after.nodes().size(), 3U);
}

TEST(SimplifyViews, TransposesThatCancelGo) {
  Example e;
  const ValueId x = e.input("x", {2, 3, 4});
  const ValueId there = e.build.transpose(x, {2, 0, 1});
  e.output(e.build.unary("Neg", e.build.transpose(there, {1, 2, 0})));
  EXPECT_EQ(apply(e.graph, simplify_views).nodes().size(), 1U);
}

TEST(SimplifyViews, NoOpsGo) {
  Example e;
  ValueId x = e.input("x", {2, 1, 4});
  const ValueId first = e.build.unary("Neg", x);
  x = e.build.identity(first);
  x = e.build.node("Cast", {x}, {kFloat, {2, 1, 4}}, {{"to", int64_t{1}}});
  x = e.build.node("Expand", {x, e.build.int64s({1, 1, 4})}, {kFloat, {2, 1, 4}});
  x = e.build.node("Slice", {x, e.build.int64s({0}), e.build.int64s({INT64_MAX})},
                   {kFloat, {2, 1, 4}});
  x = e.build.node("Pad", {x, e.build.int64s({0, 0, 0, 0, 0, 0})}, {kFloat, {2, 1, 4}});
  x = e.build.node("Concat", {x}, {kFloat, {2, 1, 4}}, {{"axis", int64_t{1}}});
  x = e.build.node("Dropout", {x}, {kFloat, {2, 1, 4}});
  x = e.build.binary("Mul", x, e.build.scalar_like(x, 1));
  x = e.build.node("CastLike", {x, e.build.scalar(kFloat, 0)}, {kFloat, {2, 1, 4}});
  x = e.build.reduce_sum(x, {1}, true);
  e.output(x);
  const Graph after = apply(e.graph, simplify_views);
  EXPECT_EQ(after.nodes().size(), 1U) << after.nodes().back().op;
}

TEST(SimplifyViews, MultiplyingByOnesThatBroadcastStays) {
  Example e;
  const ValueId x = e.input("x", {4});
  e.output(e.build.binary("Mul", x, e.build.constant(Tensor::filled({kFloat, {1, 1}}, 1))));
  EXPECT_EQ(apply(e.graph, simplify_views).nodes().size(), 1U);
}

// As ONNX writes its Attention out: a bias of zeros, and a guard for rows that it masks whole.
TEST(SimplifyViews, ZerosAreNotAddedAndFillsAreCompared) {
  Example e;
  const ValueId x = e.input("x", {2, 3});
  const ValueId zeros = e.build.node("ConstantOfShape", {e.build.int64s({2, 3})}, {kFloat, {2, 3}});
  const ValueId largest = e.build.reduce("ReduceMax", zeros, {1}, true);
  const ValueId none = e.build.scalar(kFloat, -std::numeric_limits<double>::infinity());
  const ValueId masked = e.build.binary("Equal", largest, none);
  const ValueId sum = e.build.binary("Add", x, zeros);
  e.output(e.build.unary("Neg", e.build.where(masked, e.build.scalar(kFloat, 0), sum)));
  const Graph once = apply(e.graph, simplify_views);
  EXPECT_EQ(count_nodes(once, "Add") + count_nodes(once, "Equal"), 0U);
  EXPECT_EQ(apply(once, simplify_views).nodes().size(), 1U);
}

TEST(SimplifyViews, TrainedZerosAreAdded) {
  Example e;
  const ValueId w = e.graph.add_named_constant("w", Tensor::filled({kFloat, {3}}, 0));
  e.graph.add_output("w.grad", e.build.binary("Add", e.input("x", {3}), w));
  EXPECT_EQ(apply(e.graph, simplify_views).nodes().size(), 1U);
}

TEST(SimplifyViews, MultiplyingByATrainedOneStays) {
  Example e;
  const ValueId gamma = e.graph.add_named_constant("gamma", Tensor::filled({kFloat, {}}, 1));
  const ValueId product = e.build.binary("Mul", e.input("x", {4}), gamma);
  e.graph.add_output("gamma.grad", product);
  EXPECT_EQ(apply(e.graph, simplify_views).nodes().size(), 1U);
}

TEST(SimplifyViews, SlicesGetPlainBounds) {
  Example e;
  const ValueId x = e.input("x", {3, 7});
  e.output(e.build.node("Slice",
                        {x, e.build.int64s({-3, 0}), e.build.int64s({INT64_MAX, 3}),
                         e.build.int64s({-1, 0}), e.build.int64s({1, 1})},
                        {kFloat, {3, 3}}));
  const Graph after = apply(e.graph, simplify_views);
  ASSERT_EQ(after.nodes().size(), 1U);
  EXPECT_THAT(*after.constant_ints(after.nodes()[0].input(1)), testing::ElementsAre(4));
  EXPECT_THAT(*after.constant_ints(after.nodes()[0].input(2)), testing::ElementsAre(7));
  EXPECT_THAT(*after.constant_ints(after.nodes()[0].input(3)), testing::ElementsAre(1));
}

TEST(SimplifyViews, NegativePadsAreSlices) {
  Example e;
  const ValueId x = e.input("x", {4, 7, 5});
  e.output(e.build.node("Pad", {x, e.build.int64s({0, -3, 2, 0, 0, -1})}, {kFloat, {4, 4, 6}}));
  e.output(e.build.node("Pad", {x, e.build.int64s({-2, -4}), ValueId(), e.build.int64s({-2})},
                        {kFloat, {4, 1, 5}}));
  const Graph after = apply(e.graph, simplify_views);
  EXPECT_EQ(count_nodes(after, "Pad"), 1U);
  EXPECT_EQ(count_nodes(after, "Slice"), 2U);
}

TEST(SimplifyViews, GuardsOfIndicesAreDecided) {
  Example e;
  const ValueId x = e.input("x", {6, 6});
  const ValueId rows = e.build.expand(e.build.unsqueeze(e.range(0, 6), {1}), {6, 6});
  const ValueId negative = e.build.binary("Less", rows, e.build.scalar(DataType::kInt64, 0));
  e.output(e.build.where(negative, x, e.build.unary("Neg", x)));
  EXPECT_EQ(count_nodes(apply(e.graph, simplify_views), "Where"), 0U);
}

}  // namespace
}  // namespace autosp::transforms

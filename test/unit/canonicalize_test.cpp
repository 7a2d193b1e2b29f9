// Splits, equal and private subgraphs, and the pipeline: outputs stay, and what a pass names goes.
#include "transforms/canonicalize/canonicalize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/pass_example.h"
#include "transforms/pipeline.h"

namespace autosp::transforms {
namespace {

using ir::DataType;
using ir::Graph;
using ir::Tensor;
using test::apply;
using test::count_nodes;
using test::Example;

constexpr auto kFloat = DataType::kFloat32;

TEST(SplitToSlices, UnequalPartsOnly) {
  Example e;
  const ValueId x = e.input("x", {2, 6});
  for (ValueId part : e.build.split(x, {1, 2, 3}, 1)) e.output(e.build.unary("Neg", part));
  for (ValueId part : e.build.split(x, {3, 3}, 1)) e.output(e.build.unary("Neg", part));
  const ValueId y = e.input("y", {2, 3});
  e.output(e.build.concat({x, y, x}, 1));
  e.output(e.build.concat({x, x}, 1));
  const ValueId positive = e.build.binary("Greater", x, e.build.scalar_like(x, 0));
  const ValueId small = e.build.binary("Less", y, e.build.scalar_like(y, 0));
  e.output(e.build.concat({positive, small}, 1));
  const Graph after = apply(e.graph, split_to_slices);
  EXPECT_EQ(count_nodes(after, "Split"), 1U);
  EXPECT_EQ(count_nodes(after, "Slice"), 3U);
  EXPECT_EQ(count_nodes(after, "Concat"), 1U);
  EXPECT_EQ(count_nodes(after, "Pad"), 5U);
}

TEST(EliminateCommonSubexpressions, EqualNodesMergeAndDifferentOnesDoNot) {
  Example e;
  const ValueId x = e.input("x", {2, 6});
  const ValueId half = e.graph.add_named_constant("a", Tensor::scalar(kFloat, 0.5));
  const ValueId same = e.graph.add_named_constant("b", Tensor::scalar(kFloat, 0.5));
  e.output(e.build.unary("Exp", e.build.binary("Mul", x, half)));
  e.output(e.build.unary("Exp", e.build.binary("Mul", x, same)));
  e.output(e.build.softmax("Softmax", x, 0));
  e.output(e.build.softmax("Softmax", x, 1));
  const Graph after = apply(e.graph, eliminate_common_subexpressions);
  EXPECT_EQ(count_nodes(after, "Exp"), 1U);
  EXPECT_EQ(count_nodes(after, "Mul"), 1U);
  EXPECT_EQ(count_nodes(after, "Softmax"), 2U);
}

TEST(EliminateCommonSubexpressions, RandomNodesAndEqualParametersStay) {
  Example e;
  const ValueId x = e.input("x", {4});
  for (int k = 0; k < 2; ++k) e.output(e.build.node("RandomUniformLike", {x}, {kFloat, {4}}));
  for (const std::string name : {"a", "b"}) {
    const ValueId weight = e.graph.add_named_constant(name, Tensor::filled({kFloat, {4}}, 1));
    e.graph.add_output(name + ".grad", e.build.binary("Mul", x, weight));
  }
  const Graph after = eliminate_common_subexpressions(e.graph);
  EXPECT_EQ(count_nodes(after, "RandomUniformLike"), 2U);
  EXPECT_EQ(count_nodes(after, "Mul"), 2U);
}

TEST(PrivatizeConstantSubgraphs, EveryReaderGetsItsOwnMask) {
  Example e;
  const ValueId positions = e.range(0, 4);
  const ValueId mask =
      e.build.binary("Less", e.build.unsqueeze(positions, {0}), e.build.unsqueeze(positions, {1}));
  const ValueId table = e.build.cast(mask, kFloat);
  const ValueId x = e.input("x", {4, 4});
  const ValueId y = e.build.where(mask, x, e.build.scalar_like(x, 0));
  e.output(e.build.binary("Mul", y, table));
  e.output(e.build.matmul(table, x));
  const Graph after = apply(e.graph, privatize_constant_subgraphs);
  EXPECT_EQ(count_nodes(after, "Less"), 3U);
  EXPECT_EQ(count_nodes(after, "Cast"), 2U);
  EXPECT_EQ(count_nodes(eliminate_common_subexpressions(after), "Less"), 1U);
}

TEST(PrivatizeConstantSubgraphs, BothOperandsOfOneNode) {
  Example e;
  const ValueId x = e.input("x", {4, 4});
  const ValueId table = e.build.unary(
      "Neg", e.build.expand(e.build.constant(Tensor::filled({kFloat, {4, 1}}, 2)), {4, 4}));
  e.output(e.build.where(e.build.binary("Less", x, table), table, x));
  EXPECT_EQ(count_nodes(apply(e.graph, privatize_constant_subgraphs), "Expand"), 2U);
}

TEST(Pipeline, RunsPassesByNameAndReportsEach) {
  Example e;
  const ValueId x = e.input("x", {4, 4});
  e.output(e.build.reduce("ReduceMean", x, {1}, false));
  std::vector<PassTiming> timings;
  std::vector<std::string> seen;
  const Graph after = run_passes(
      e.graph, {.passes = {"simplify_views", "decompose_means"},
                .after = [&](const Pass& pass, const Graph&) { seen.emplace_back(pass.name); },
                .timings = &timings});
  EXPECT_THAT(seen, testing::ElementsAre("simplify_views", "decompose_means"));
  ASSERT_EQ(timings.size(), 2U);
  EXPECT_EQ(timings[1].nodes_before, 1U);
  EXPECT_EQ(timings[1].nodes_after, 2U);
  EXPECT_EQ(count_nodes(after, "ReduceMean"), 0U);
}

TEST(Pipeline, AnUnknownPassIsAnErrorWithASuggestion) {
  try {
    run_passes(Graph(), {.passes = {"decompose_mean"}});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("did you mean 'decompose_means'?"));
  }
}

TEST(Pipeline, EveryPassHasASummary) {
  for (const std::string& name : pass_names())
    EXPECT_FALSE(find_pass(name).summary.empty()) << name;
}

}  // namespace
}  // namespace autosp::transforms

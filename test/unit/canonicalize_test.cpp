// Canonicalization passes: each keeps the outputs of small graphs, and removes what it says.
#include "transforms/canonicalize/canonicalize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "ir/builder.h"
#include "support/run_graph.h"
#include "transforms/pipeline.h"

namespace autosp::transforms {
namespace {

using ir::Builder;
using ir::DataType;
using ir::Graph;
using ir::Shape;
using ir::Tensor;
using test::count_nodes;
using test::expect_close;
using test::random_feeds;
using test::run_graph;

constexpr auto kFloat = DataType::kFloat32;

// The graph after `pass`, having checked that its outputs are the same.
Graph apply(const Graph& graph, Graph (*pass)(const Graph&),
            const test::FeedOptions& options = {}) {
  Graph after = pass(graph);
  verify(after);
  const test::Tensors feeds = random_feeds(graph, options);
  expect_close(run_graph(after, feeds), run_graph(graph, feeds));
  return after;
}

struct Example {
  Graph graph;
  Builder build{graph};

  ValueId input(const std::string& name, Shape shape, DataType dtype = kFloat) {
    return graph.add_input(name, {dtype, std::move(shape)});
  }
  ValueId range(int64_t begin, int64_t end) {
    std::vector<int64_t> values(static_cast<size_t>(end - begin));
    std::iota(values.begin(), values.end(), begin);
    return build.int64s(std::move(values));
  }
  void output(ValueId value) {
    graph.add_output("out" + std::to_string(graph.outputs().size()), value);
  }
};

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
    if (value.kind == ir::ValueKind::kConstant) EXPECT_LE(value.type.num_elements(), 6);
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

TEST(SimplifyViews, DrawsKeepTheirNumbersAndLoseTheirTemplate) {
  for (const std::string op : {"RandomUniformLike", "RandomNormalLike"}) {
    Example e;
    const ValueId x = e.input("x", {3, 4});
    e.output(e.build.node(op, {x}, {kFloat, {3, 4}}, {{"seed", 3.0F}}));
    e.output(e.build.node(op, {x}, {kFloat, {3, 4}}));
    const Graph after = apply(e.graph, simplify_views);
    EXPECT_EQ(count_nodes(after, op), 0U);
    EXPECT_EQ(after.nodes().size(), 2U);
  }
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

TEST(DecomposeDropout, DropsWhatTheOperatorDrops) {
  for (const bool seeded : {false, true}) {
    Example e;
    const ValueId x = e.input("x", {5, 40});
    ir::Attributes attributes;
    if (seeded) attributes.set("seed", int64_t{7});
    const auto results = e.build.node(
        "Dropout", {x, e.build.scalar(kFloat, 0.25), e.build.scalar(DataType::kBool, 1)},
        {{kFloat, {5, 40}}, {DataType::kBool, {5, 40}}}, attributes);
    e.output(results[0]);
    e.output(results[1]);
    const Graph after = apply(e.graph, decompose_dropout);
    EXPECT_EQ(count_nodes(after, "Dropout"), 0U);
    EXPECT_EQ(count_nodes(after, "RandomUniform"), 1U);
  }
}

// A ratio between a draw and the float32 next to it: the whole operator and its parts must agree.
TEST(DecomposeDropout, DrawsAreComparedAsFloat32) {
  Example draws;
  draws.output(draws.build.node("RandomUniform", {}, {DataType::kFloat64, {64}},
                                {{"shape", std::vector<int64_t>{64}},
                                 {"dtype", static_cast<int64_t>(DataType::kFloat64)},
                                 {"seed", 7.0F}}));
  const Tensor drawn = run_graph(draws.graph, {}).at("out0");
  int64_t k = 0;  // the first draw that float32 rounds up
  while (static_cast<float>(drawn.value_as_double(k)) <= drawn.value_as_double(k)) ++k;
  const auto ratio = static_cast<float>(drawn.value_as_double(k));
  Example e;
  const auto results =
      e.build.node("Dropout",
                   {e.input("x", {64}), e.build.scalar(kFloat, static_cast<double>(ratio)),
                    e.build.scalar(DataType::kBool, 1)},
                   {{kFloat, {64}}, {DataType::kBool, {64}}}, {{"seed", int64_t{7}}});
  e.output(results[0]);
  e.output(results[1]);
  const test::Tensors feeds = random_feeds(e.graph);
  EXPECT_TRUE(run_graph(e.graph, feeds).at("out1").values<bool>()[static_cast<size_t>(k)]);
  apply(e.graph, decompose_dropout);
}

TEST(DecomposeDropout, DropoutThatMayNotTrainStays) {
  Example e;
  const ValueId training = e.input("training", {}, DataType::kBool);
  e.output(e.build.node("Dropout", {e.input("x", {5}), e.build.scalar(kFloat, 0.25), training},
                        {kFloat, {5}}));
  EXPECT_EQ(count_nodes(apply(e.graph, decompose_dropout), "Dropout"), 1U);
}

TEST(RaiseScatterToPad, TheTransposedIdiomOfASlicesGradient) {
  Example e;
  const ValueId x = e.input("x", {2, 5, 3});
  const ValueId zeros = e.build.zeros({kFloat, {7, 2, 3}});
  const ValueId index = e.build.unsqueeze(e.range(1, 6), {1});
  const ValueId placed = e.build.scatter_nd(zeros, index, e.build.transpose(x, {1, 0, 2}), "none");
  e.output(e.build.transpose(placed, {1, 0, 2}));
  const Graph after = simplify_views(apply(e.graph, raise_scatter_to_pad));
  EXPECT_EQ(count_nodes(after, "ScatterND"), 0U);
  EXPECT_EQ(count_nodes(after, "Transpose"), 0U);
  ASSERT_EQ(after.nodes().size(), 1U);
  EXPECT_THAT(*after.constant_ints(after.nodes()[0].input(1)),
              testing::ElementsAre(0, 1, 0, 0, 1, 0));
}

TEST(RaiseScatterToPad, ComputedIndicesOfEveryKindOfZeros) {
  for (int kind = 0; kind < 3; ++kind) {
    Example e;
    const ValueId x = e.input("x", {5, 3});
    const ValueId zero = e.build.scalar(kFloat, 0);
    const ValueId zeros = kind == 0   ? e.build.zeros({kFloat, {9, 3}})
                          : kind == 1 ? e.build.expand(zero, {9, 3})
                                      : e.build.constant(Tensor({kFloat, {9, 3}}));
    const auto scalar = [&](double value) { return e.build.scalar(DataType::kInt64, value); };
    const ValueId range =
        e.build.node("Range", {scalar(0), scalar(5), scalar(1)}, {DataType::kInt64, {5}});
    const ValueId index = e.build.unsqueeze(e.build.binary("Add", range, scalar(2)), {-1});
    e.output(e.build.scatter_nd(zeros, index, x, "none"));
    const Graph after = apply(e.graph, raise_scatter_to_pad);
    EXPECT_EQ(count_nodes(after, "ScatterND"), 0U) << kind;
    EXPECT_EQ(count_nodes(after, "Pad"), 1U) << kind;
  }
}

TEST(RaiseScatterToPad, PositionEmbeddingGradientsSumOverTheBatchFirst) {
  Example e;
  const ValueId updates = e.input("x", {2, 5, 3});
  const ValueId index =
      e.build.unsqueeze(e.build.expand(e.build.unsqueeze(e.range(0, 5), {0}), {2, 5}), {-1});
  e.output(e.build.scatter_nd(e.build.zeros({kFloat, {8, 3}}), index, updates, "add"));
  const Graph after = apply(e.graph, raise_scatter_to_pad);
  EXPECT_EQ(count_nodes(after, "ScatterND"), 0U);
  EXPECT_EQ(count_nodes(after, "ReduceSum"), 1U);
  EXPECT_EQ(count_nodes(after, "Pad"), 1U);
}

TEST(RaiseScatterToPad, ABaseThatIsNotZeroIsKeptOutside) {
  for (const char* reduction : {"none", "add"}) {
    Example e;
    const ValueId base = e.input("base", {7, 3});
    const ValueId x = e.input("x", {4, 3});
    e.output(e.build.scatter_nd(base, e.build.unsqueeze(e.range(2, 6), {1}), x, reduction));
    EXPECT_EQ(count_nodes(apply(e.graph, raise_scatter_to_pad), "ScatterND"), 0U);
  }
}

TEST(RaiseScatterToPad, OtherScattersStay) {
  Example e;
  const ValueId zeros = e.build.zeros({kFloat, {9, 3}});
  const auto scatter = [&](std::vector<int64_t> at, const char* name) {
    const auto count = static_cast<int64_t>(at.size());
    const ValueId index = e.build.unsqueeze(e.build.int64s(std::move(at)), {1});
    e.output(e.build.scatter_nd(zeros, index, e.input(name, {count, 3}), "add"));
  };
  scatter({0, 2, 4}, "strided");
  scatter({2, 1, 0}, "reversed");
  scatter({0, 1, 3}, "broken");
  // Which of two rows of one position stays is not defined.
  const ValueId twice =
      e.build.unsqueeze(e.build.expand(e.build.unsqueeze(e.range(0, 4), {0}), {2, 4}), {-1});
  e.output(e.build.scatter_nd(zeros, twice, e.input("overwritten", {2, 4, 3}), "none"));
  const ValueId data = e.input("data_index", {4, 1}, DataType::kInt64);
  e.output(e.build.scatter_nd(zeros, data, e.input("x", {4, 3}), "add"));
  EXPECT_EQ(count_nodes(apply(e.graph, raise_scatter_to_pad), "ScatterND"), 5U);
}

TEST(RaiseScatterToPad, ScatterElementsAlongAnAxis) {
  Example e;
  const ValueId x = e.input("x", {3, 4, 2});
  const ValueId index = e.build.expand(e.build.unsqueeze(e.range(1, 5), {0, 2}), {3, 4, 2});
  e.output(e.build.scatter_elements(e.build.zeros({kFloat, {3, 6, 2}}), index, x, 1, "add"));
  const Graph after = apply(e.graph, raise_scatter_to_pad);
  EXPECT_EQ(count_nodes(after, "Pad"), 1U);
  EXPECT_EQ(count_nodes(after, "ScatterElements"), 0U);
}

// [B, 1, 1, S, 2] (or another arrangement of rows), as exporters compute it.
ValueId grid(Example& e, const Shape& rows, size_t batch_axis, size_t seq_axis, int64_t begin) {
  const auto along = [&](size_t axis, int64_t from) {
    Shape shape(rows.size(), 1);
    shape[axis] = rows[axis];
    const ValueId range = e.range(from, from + rows[axis]);
    return e.build.unsqueeze(e.build.expand(e.build.reshape(range, shape), rows), {-1});
  };
  return e.build.concat({along(batch_axis, 0), along(seq_axis, begin)}, -1);
}

TEST(SimplifyGathers, AGridOverBatchAndSequenceIsAView) {
  for (const int64_t begin : {0, 2}) {
    Example e;
    const ValueId mask = e.input("mask", {3, 7});
    const Shape rows = {3, 1, 1, 5};
    e.output(e.build.node("GatherND", {mask, grid(e, rows, 0, 3, begin)}, {kFloat, rows}));
    const Graph after = apply(e.graph, simplify_gathers);
    EXPECT_EQ(count_nodes(after, "GatherND"), 0U);
    EXPECT_EQ(count_nodes(after, "Transpose") + count_nodes(after, "Expand"), 0U);
  }
}

TEST(SimplifyGathers, AConstantGridIsRecognisedToo) {
  Example e;
  const ValueId mask = e.input("mask", {2, 3});
  const ValueId index =
      e.build.constant(Tensor::int64s({0, 0, 0, 1, 0, 2, 1, 0, 1, 1, 1, 2}).reshaped({2, 1, 3, 2}));
  e.output(e.build.node("GatherND", {mask, index}, {kFloat, {2, 1, 3}}));
  EXPECT_EQ(count_nodes(apply(e.graph, simplify_gathers), "GatherND"), 0U);
}

TEST(SimplifyGathers, ATransposedGridThatRepeatsItsRows) {
  Example e;
  const ValueId mask = e.input("mask", {3, 5, 2});
  const Shape rows = {5, 4, 3};
  e.output(e.build.node("GatherND", {mask, grid(e, rows, 2, 0, 0)}, {kFloat, {5, 4, 3, 2}}));
  const Graph after = apply(e.graph, simplify_gathers);
  EXPECT_EQ(count_nodes(after, "GatherND"), 0U);
  EXPECT_EQ(count_nodes(after, "Transpose"), 1U);
  EXPECT_EQ(count_nodes(after, "Expand"), 1U);
}

TEST(SimplifyGathers, BatchDimensionsCountAlong) {
  Example e;
  const ValueId data = e.input("data", {3, 5, 2});
  const ValueId index = e.build.expand(e.build.unsqueeze(e.range(1, 4), {0, 2}), {3, 3, 1});
  e.output(
      e.build.node("GatherND", {data, index}, {kFloat, {3, 3, 2}}, {{"batch_dims", int64_t{1}}}));
  EXPECT_EQ(count_nodes(apply(e.graph, simplify_gathers), "GatherND"), 0U);
}

TEST(SimplifyGathers, TheDiagonalStays) {
  Example e;
  const ValueId data = e.input("data", {4, 4});
  const ValueId column = e.build.unsqueeze(e.range(0, 4), {1});
  e.output(e.build.node("GatherND", {data, e.build.concat({column, column}, 1)}, {kFloat, {4}}));
  EXPECT_EQ(count_nodes(apply(e.graph, simplify_gathers), "GatherND"), 1U);
}

TEST(SimplifyGathers, PositionsOfATableAreASlice) {
  Example e;
  const ValueId table = e.input("table", {9, 4});
  const ValueId positions = e.build.unsqueeze(e.range(2, 7), {0});
  e.output(e.build.gather(table, positions, 0));
  e.output(e.build.gather(table, e.build.expand(positions, {3, 5}), 0));
  e.output(e.build.gather(table, e.range(0, 4), 1));
  e.output(e.build.gather(table, e.build.int64s({3, 1}), 0));
  const Graph after = simplify_views(apply(e.graph, simplify_gathers));
  EXPECT_EQ(count_nodes(after, "Gather"), 1U);
  EXPECT_EQ(count_nodes(after, "Slice"), 2U);
}

TEST(SimplifyGathers, NegativePositionsCountFromTheEnd) {
  Example e;
  const ValueId table = e.input("table", {9, 4});
  e.output(e.build.gather(table, e.range(-4, -1), 0));
  EXPECT_EQ(count_nodes(apply(e.graph, simplify_gathers), "Gather"), 0U);
}

TEST(SelectToMaskedSum, OnePositionOfAnActivation) {
  for (const int64_t position : {0, 3, -1}) {
    Example e;
    const ValueId h = e.build.unary("Tanh", e.input("h", {2, 5, 3}));
    e.output(e.build.gather(h, e.build.scalar(DataType::kInt64, static_cast<double>(position)), 1));
    e.output(e.build.gather(h, e.build.int64s({position}), 1));
    const int64_t begin = (position + 5) % 5;
    e.output(e.build.slice(h, 1, begin, begin + 1));
    const Graph after = apply(e.graph, select_to_masked_sum);
    EXPECT_EQ(count_nodes(after, "Gather") + count_nodes(after, "Slice"), 0U);
    EXPECT_EQ(count_nodes(after, "ReduceSum"), 3U);
  }
}

// ReduceSum is not defined for them.
TEST(SelectToMaskedSum, BoolsAndSmallIntegersStay) {
  for (const DataType dtype : {DataType::kBool, DataType::kInt8, DataType::kInt32}) {
    Example e;
    const ValueId h = e.build.unary("Tanh", e.input("h", {2, 5}));
    const ValueId positive = e.build.binary("Greater", h, e.build.scalar_like(h, 0));
    const ValueId x = dtype == DataType::kBool ? positive
                                               : e.build.where(positive, e.build.scalar(dtype, 1),
                                                               e.build.scalar(dtype, 2));
    e.output(e.build.gather(x, e.build.scalar(DataType::kInt64, 3), 1));
    e.output(e.build.slice(x, 1, 3, 4));
    const Graph after = apply(e.graph, select_to_masked_sum);
    EXPECT_EQ(count_nodes(after, "ReduceSum"), dtype == DataType::kInt32 ? 2U : 0U);
  }
}

TEST(SelectToMaskedSum, OneRowOfAWeightStays) {
  Example e;
  const ValueId w = e.input("w", {4, 3});
  e.output(e.build.gather(w, e.build.scalar(DataType::kInt64, 1), 0));
  EXPECT_EQ(count_nodes(apply(e.graph, select_to_masked_sum), "Gather"), 1U);
}

TEST(SelectToMaskedSum, TheGradientOfASelectionIsAMaskedBroadcast) {
  Example e;
  e.output(e.build.pad(e.input("x", {2, 1, 3}), {0, 4, 0}, {0, 2, 0}));
  e.output(e.build.pad(e.input("y", {2, 2, 3}), {0, 4, 0}, {0, 1, 0}));
  const Graph after = apply(e.graph, select_to_masked_sum);
  EXPECT_EQ(count_nodes(after, "Pad"), 1U);
  EXPECT_EQ(count_nodes(after, "Where"), 1U);
}

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

// Gathers, scatters and selections: each pass keeps the outputs of small graphs, and removes what
// it says.
#include "transforms/canonicalize/canonicalize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

constexpr auto kFloat = DataType::kFloat32;

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

}  // namespace
}  // namespace autosp::transforms

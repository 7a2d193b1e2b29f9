// Slices of logits and pads of their gradients, in the forms in which exporters write them: outputs
// stay, and no value has all positions in the width of the logits any more.
#include <gtest/gtest.h>

#include <algorithm>

#include "support/pass_example.h"
#include "transforms/canonicalize/canonicalize.h"

namespace autosp::transforms {
namespace {

using ir::Attributes;
using ir::DataType;
using ir::Graph;
using ir::Shape;
using ir::Type;
using test::apply;
using test::count_nodes;
using test::Example;

constexpr int64_t kBatch = 2;
constexpr int64_t kLength = 6;
constexpr int64_t kHidden = 4;
constexpr int64_t kVocabulary = 10;

// A head whose logits [begin, begin + 5) count.
struct Head : Example {
  ValueId x = input("x", {kBatch, kLength, kHidden});
  ValueId weight = input("w", {kHidden, kVocabulary});
  int64_t begin = 0;

  ValueId flat(ValueId value) {
    return build.reshape(value, {kBatch * kLength, build.shape(value).back()});
  }
  ValueId unflat(ValueId value) {
    return build.reshape(value, {kBatch, kLength, build.shape(value).back()});
  }
  ValueId kept(ValueId logits) { return build.slice(logits, 1, begin, begin + kLength - 1); }
  ValueId padded(ValueId gradient) { return build.pad(gradient, {0, begin, 0}, {0, 1 - begin, 0}); }
  ValueId swapped(ValueId value) { return build.transpose(value, {1, 0}); }
  ValueId gemm(ValueId a, ValueId b, Shape result, const Attributes& attributes) {
    return build.node("Gemm", {a, b}, Type{DataType::kFloat32, std::move(result)}, attributes);
  }
};

// Values as wide as the logits that have all positions.
int64_t count_whole(const Graph& graph) {
  return std::ranges::count_if(graph.nodes(), [&](const ir::Node& node) {
    return graph.type(node.output(0)).num_elements() == kBatch * kLength * kVocabulary;
  });
}

TEST(DropPositionsEarly, BatchesOfRows) {
  for (const int64_t begin : {0, 1}) {
    Head h;
    h.begin = begin;
    const ValueId p = h.build.unary("Exp", h.kept(h.build.matmul(h.x, h.weight)));
    h.output(p);
    const ValueId g = h.padded(p);
    h.output(h.build.matmul(g, h.swapped(h.weight)));
    h.output(h.build.reduce_sum(g, {0, 1}, false));
    h.output(h.build.matmul(h.swapped(h.flat(h.x)), h.flat(g)));
    h.output(h.build.reduce_sum(h.build.matmul(h.build.transpose(h.x, {0, 2, 1}), g), {0}, false));
    EXPECT_EQ(count_whole(apply(h.graph, drop_positions_early)), 0);
  }
}

TEST(DropPositionsEarly, RowsOfAllSamples) {
  Head h;
  const ValueId p = h.build.unary("Exp", h.kept(h.unflat(h.build.matmul(h.flat(h.x), h.weight))));
  h.output(p);
  const ValueId g = h.flat(h.padded(p));
  h.output(h.unflat(h.build.matmul(g, h.swapped(h.weight))));
  h.output(h.build.matmul(h.swapped(g), h.flat(h.x)));
  EXPECT_EQ(count_whole(apply(h.graph, drop_positions_early)), 0);
}

TEST(DropPositionsEarly, Gemms) {
  Head h;
  const ValueId bias = h.input("bias", {kVocabulary});
  const ValueId logits = h.build.node("Gemm", {h.flat(h.x), h.swapped(h.weight), bias},
                                      Type{DataType::kFloat32, {kBatch * kLength, kVocabulary}},
                                      Attributes{{"transB", int64_t{1}}});
  const ValueId p = h.build.unary("Exp", h.kept(h.unflat(logits)));
  h.output(p);
  const ValueId g = h.flat(h.padded(p));
  h.output(h.gemm(g, h.weight, {kBatch * kLength, kHidden}, {{"transB", int64_t{1}}}));
  h.output(h.gemm(g, h.flat(h.x), {kVocabulary, kHidden}, {{"transA", int64_t{1}}}));
  h.output(h.gemm(h.flat(h.x), g, {kHidden, kVocabulary}, {{"transA", int64_t{1}}}));
  EXPECT_EQ(count_whole(apply(h.graph, drop_positions_early)), 0);
}

// tanh(x W / 3) * 3, and its slope in the backward pass.
TEST(DropPositionsEarly, SoftcappedLogits) {
  Head h;
  const ValueId three = h.build.scalar(DataType::kFloat32, 3);
  const ValueId t =
      h.build.unary("Tanh", h.build.binary("Div", h.build.matmul(h.x, h.weight), three));
  const ValueId p = h.build.unary("Exp", h.kept(h.build.binary("Mul", t, three)));
  h.output(p);
  const ValueId slope =
      h.build.binary("Sub", h.build.scalar(DataType::kFloat32, 1), h.build.binary("Mul", t, t));
  const ValueId g = h.build.binary("Mul", h.padded(h.build.unary("Neg", p)), slope);
  h.output(h.build.matmul(g, h.swapped(h.weight)));
  h.output(h.build.matmul(h.swapped(h.flat(h.x)), h.flat(g)));
  EXPECT_EQ(count_whole(apply(h.graph, drop_positions_early)), 0);
}

// Trailing extents of 1, as exporters that broadcast gradients leave them.
TEST(DropPositionsEarly, UnitExtents) {
  Head h;
  const ValueId p = h.build.unary("Exp", h.kept(h.build.matmul(h.x, h.weight)));
  const ValueId g = h.build.pad(h.build.unsqueeze(p, {3}), {0, 0, 0, 0}, {0, 1, 0, 0});
  const ValueId rows = h.build.reshape(g, {1, kBatch, kLength, kVocabulary});
  h.output(h.build.matmul(rows, h.swapped(h.weight)));
  h.output(h.build.matmul(h.build.transpose(h.x, {0, 2, 1}), rows));
  EXPECT_EQ(count_whole(apply(h.graph, drop_positions_early)), 0);
}

// Who reads whole logits has them computed whole: a second product would be waste.
TEST(DropPositionsEarly, LogitsThatAreReadWholeStay) {
  Head h;
  const ValueId logits = h.build.matmul(h.x, h.weight);
  h.output(h.kept(logits));
  h.output(logits);
  const Graph after = apply(h.graph, drop_positions_early);
  EXPECT_EQ(count_nodes(after, "MatMul"), 1U);
  EXPECT_EQ(count_whole(after), 1);
}

// A padded gradient that something else reads whole, and one that only some readers can do without.
TEST(DropPositionsEarly, OtherReadersGetThePad) {
  Head h;
  const ValueId p = h.build.unary("Exp", h.kept(h.build.matmul(h.x, h.weight)));
  const ValueId g = h.padded(p);
  h.output(h.build.matmul(g, h.swapped(h.weight)));
  h.output(h.build.unary("Cos", g));
  h.output(g);
  const Graph after = apply(h.graph, drop_positions_early);
  EXPECT_EQ(count_whole(after), 2);
}

// Shifted hidden states (as in RWKV) are no logits: what is narrow is shifted where it is narrow.
TEST(DropPositionsEarly, NarrowValuesStay) {
  Head h;
  const ValueId shifted = h.build.pad(h.kept(h.x), {0, 1, 0}, {0, 0, 0});
  h.output(h.build.matmul(shifted, h.weight));
  const Graph after = apply(h.graph, drop_positions_early);
  EXPECT_EQ(count_nodes(after, "Pad"), 1U);
  EXPECT_EQ(after.shape(after.outputs()[0].value), (Shape{kBatch, kLength, kVocabulary}));
  EXPECT_EQ(after.producer(after.outputs()[0].value)->op, "MatMul");
}

}  // namespace
}  // namespace autosp::transforms

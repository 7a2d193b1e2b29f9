// Convolutions along one axis against their sums over taps, in every form that has one.
#include <gtest/gtest.h>

#include "support/pass_example.h"
#include "transforms/canonicalize/canonicalize.h"

namespace autosp::transforms {
namespace {

using ir::DataType;
using ir::Graph;
using ir::Shape;
using test::apply;
using test::count_nodes;
using test::Example;

struct ConvolutionCase {
  const char* name;
  const char* op;
  Shape x, w, y;
  ir::Attributes attributes;
  bool biased = false;
  bool stays = false;
};

class DecomposeConvolutions : public testing::TestWithParam<ConvolutionCase> {};

TEST_P(DecomposeConvolutions, KeepsWhatTheyCompute) {
  const ConvolutionCase& c = GetParam();
  Example e;
  std::vector<ValueId> operands = {e.build.unary("Neg", e.input("x", c.x)), e.input("w", c.w)};
  if (c.biased) operands.push_back(e.input("b", {c.y[1]}));
  e.output(e.build.node(c.op, operands, {DataType::kFloat32, c.y}, c.attributes));
  const Graph after = apply(e.graph, decompose_convolutions);
  EXPECT_EQ(count_nodes(after, c.op), c.stays ? 1U : 0U);
}

using Ints = std::vector<int64_t>;
constexpr int64_t kTwo = 2;
constexpr int64_t kSix = 6;

INSTANTIATE_TEST_SUITE_P(
    Forms, DecomposeConvolutions,
    testing::Values(
        ConvolutionCase{"pointwise", "Conv", {2, 3, 7}, {4, 3, 1}, {2, 4, 7}, {}, true},
        ConvolutionCase{"dense", "Conv", {2, 3, 7}, {4, 3, 3}, {2, 4, 7}, {{"pads", Ints{1, 1}}}},
        ConvolutionCase{
            "causal", "Conv", {2, 3, 7}, {4, 3, 3}, {2, 4, 9}, {{"pads", Ints{2, 2}}}, true},
        ConvolutionCase{"unpadded", "Conv", {2, 3, 7}, {4, 3, 3}, {2, 4, 5}, {}},
        ConvolutionCase{"depthwise",
                        "Conv",
                        {2, 6, 7},
                        {6, 1, 4},
                        {2, 6, 7},
                        {{"pads", Ints{3, 0}}, {"group", kSix}},
                        true},
        ConvolutionCase{"depthwise_dilated",
                        "Conv",
                        {2, 6, 9},
                        {6, 1, 3},
                        {2, 6, 8},
                        {{"pads", Ints{1, 2}}, {"dilations", Ints{2}}, {"group", kSix}}},
        ConvolutionCase{"two_filters_a_channel",
                        "Conv",
                        {2, 2, 7},
                        {6, 1, 3},
                        {2, 6, 7},
                        {{"auto_pad", std::string("SAME_UPPER")}, {"group", kTwo}}},
        ConvolutionCase{"even_window_same_lower",
                        "Conv",
                        {2, 2, 7},
                        {3, 2, 4},
                        {2, 3, 7},
                        {{"auto_pad", std::string("SAME_LOWER")}}},
        ConvolutionCase{"even_window_same_upper",
                        "Conv",
                        {2, 2, 7},
                        {3, 2, 4},
                        {2, 3, 7},
                        {{"auto_pad", std::string("SAME_UPPER")}}},
        ConvolutionCase{"groups",
                        "Conv",
                        {2, 4, 7},
                        {6, 2, 3},
                        {2, 6, 7},
                        {{"pads", Ints{1, 1}}, {"group", kTwo}},
                        true},
        ConvolutionCase{"an_axis_of_one",
                        "Conv",
                        {2, 4, 1, 7},
                        {6, 4, 1, 3},
                        {2, 6, 1, 7},
                        {{"pads", Ints{0, 1, 0, 1}}, {"dilations", Ints{1, 1}}}},
        ConvolutionCase{"adjoint",
                        "ConvTranspose",
                        {2, 4, 7},
                        {4, 3, 3},
                        {2, 3, 7},
                        {{"pads", Ints{1, 1}}},
                        true},
        ConvolutionCase{"adjoint_of_causal", "ConvTranspose", {2, 4, 7}, {4, 3, 3}, {2, 3, 9}, {}},
        ConvolutionCase{"adjoint_that_crops",
                        "ConvTranspose",
                        {2, 4, 7},
                        {4, 3, 3},
                        {2, 3, 4},
                        {{"pads", Ints{2, 3}}}},
        ConvolutionCase{"adjoint_depthwise",
                        "ConvTranspose",
                        {2, 6, 7},
                        {6, 1, 3},
                        {2, 6, 7},
                        {{"pads", Ints{2, 2}}, {"dilations", Ints{2}}, {"group", kSix}}},
        ConvolutionCase{"adjoint_of_groups",
                        "ConvTranspose",
                        {2, 6, 7},
                        {6, 2, 3},
                        {2, 4, 7},
                        {{"pads", Ints{1, 1}}, {"group", kTwo}},
                        true},
        ConvolutionCase{"strides",
                        "Conv",
                        {2, 3, 8},
                        {4, 3, 2},
                        {2, 4, 4},
                        {{"strides", Ints{2}}},
                        false,
                        true},
        ConvolutionCase{
            "two_axes", "Conv", {2, 3, 5, 5}, {4, 3, 2, 2}, {2, 4, 4, 4}, {}, false, true},
        ConvolutionCase{"many_taps", "Conv", {1, 2, 70}, {2, 2, 65}, {1, 2, 6}, {}, false, true}),
    [](const auto& form) { return std::string(form.param.name); });

// Two taps of 300 * 300 and -250 * 250 are beyond float16, their sum is not.
TEST(DecomposeConvolutions, AddsUpNarrowProductsInFloat32) {
  for (const int64_t groups : {int64_t{1}, int64_t{2}}) {
    Example e;
    const auto rows = [&](std::vector<float> values) {
      const ir::Shape shape = {2, groups == 1 ? 2 : 1, 2};
      if (groups == 1) values = {values[0], values[1], 0, 0, 0, 0, values[2], values[3]};
      const ir::Tensor tensor = ir::Tensor::from_values<float>(shape, values);
      return e.build.cast(e.build.constant(tensor), DataType::kFloat16);
    };
    const ValueId w = rows({300, -250, 300, -250});
    const ValueId x = e.build.cast(e.build.constant(ir::Tensor::from_values<float>(
                                       {1, 2, 2}, std::vector<float>{300, 250, 300, 250})),
                                   DataType::kFloat16);
    const ValueId y =
        e.build.node("Conv", {x, w}, {DataType::kFloat16, {1, 2, 1}}, {{"group", groups}});
    e.output(e.build.cast(y, DataType::kFloat32));
    const Graph after = apply(e.graph, decompose_convolutions);
    EXPECT_EQ(count_nodes(after, "Conv"), 0U);
  }
}

// Its sequence would be told by no operator any more.
TEST(DecomposeConvolutions, LeavesThoseOfInputs) {
  Example e;
  e.output(e.build.node("Conv", {e.input("input_features", {2, 3, 7}), e.input("w", {4, 3, 1})},
                        {DataType::kFloat32, {2, 4, 7}}));
  EXPECT_EQ(count_nodes(apply(e.graph, decompose_convolutions), "Conv"), 1U);
}

}  // namespace
}  // namespace autosp::transforms

// The reference kernels against values worked out by hand. ONNX's own node tests
// (test/conformance) cover them operator by operator; here are the cases those leave out.
#include "reference/kernels.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "ir/builder.h"

namespace autosp {
namespace {

using ir::DataType;
using ir::Shape;
using ir::Tensor;
using ir::Type;
using testing::ElementsAre;

Tensor floats(Shape shape, std::vector<float> values) {
  return Tensor::from_values<float>(std::move(shape), values);
}

// Evaluates one node on constants.
Tensor evaluate(const std::string& op, const std::vector<Tensor>& operands, Type result,
                ir::Attributes attributes = {}) {
  ir::Graph graph;
  std::vector<ValueId> inputs;
  for (const Tensor& operand : operands) {
    inputs.push_back(operand.dtype() == DataType::kUndefined ? ValueId()
                                                             : graph.add_constant(operand));
  }
  const NodeId id = graph.add_node(op, inputs, {std::move(result)}, std::move(attributes));
  return reference::evaluate(graph, graph.node(id), operands)[0];
}

std::vector<float> values(const Tensor& tensor) {
  const auto span = tensor.values<float>();
  return {span.begin(), span.end()};
}

TEST(ReferenceKernels, AddBroadcastsOnBothSides) {
  const Tensor column = floats({2, 1}, {10, 20});
  const Tensor row = floats({3}, {1, 2, 3});
  EXPECT_THAT(values(evaluate("Add", {column, row}, {DataType::kFloat32, {2, 3}})),
              ElementsAre(11, 12, 13, 21, 22, 23));
}

TEST(ReferenceKernels, BFloat16IsComputedAsFloatAndRoundedOnce) {
  const Tensor big = Tensor::scalar(DataType::kBFloat16, 256);
  const Tensor one = Tensor::scalar(DataType::kBFloat16, 1);
  // 256 + 1 is not a bfloat16; summing three operands rounds 258, not 256 twice.
  EXPECT_EQ(evaluate("Add", {big, one}, {DataType::kBFloat16, {}}).value_as_double(0), 256);
  EXPECT_EQ(evaluate("Sum", {big, one, one}, {DataType::kBFloat16, {}}).value_as_double(0), 258);
}

// Longer than the blocks in which sums and powers are computed.
TEST(ReferenceKernels, SumsAndPowersOfManyElementsBroadcast) {
  constexpr int64_t kRows = 3;
  constexpr int64_t kColumns = 2500;
  const auto sequence = [](Shape shape, float first, float step) {
    Tensor tensor({DataType::kFloat32, std::move(shape)});
    for (float& x : tensor.mutable_values<float>()) x = first, first += step;
    return tensor;
  };
  const Tensor x = sequence({kRows, kColumns}, 1, 1);
  const Tensor row = sequence({kColumns}, 0, 0.5F);
  const Tensor column = sequence({kRows, 1}, 7, 100);
  const Tensor exponents = sequence({kRows, 1}, 0, 1);
  const Tensor two = Tensor::scalar(DataType::kFloat32, 2);
  const Type& type = x.type();
  const Tensor sum = evaluate("Sum", {column, x, row, two}, type);
  const Tensor whole = evaluate("Sum", {x, x, two}, type);
  const Tensor larger = evaluate("Max", {row, column, x}, type);
  const Tensor power = evaluate("Pow", {x, exponents}, type);
  const Tensor square = evaluate("Pow", {x, two}, type);
  const Tensor each = evaluate("Pow", {column, sequence({kRows, kColumns}, 0, 0)}, type);
  for (int64_t i = 0; i < x.num_elements(); ++i) {
    const auto r = i / kColumns;
    const double at = static_cast<double>(i) + 1;
    const double of_row = 0.5 * static_cast<double>(i % kColumns);
    const double of_column = 7 + 100 * static_cast<double>(r);
    ASSERT_EQ(sum.value_as_double(i), of_column + at + of_row + 2) << i;
    ASSERT_EQ(whole.value_as_double(i), 2 * at + 2) << i;
    ASSERT_EQ(larger.value_as_double(i), std::max({of_row, of_column, at})) << i;
    ASSERT_FLOAT_EQ(static_cast<float>(power.value_as_double(i)),
                    static_cast<float>(std::pow(at, static_cast<double>(r))))
        << i;
    ASSERT_FLOAT_EQ(static_cast<float>(square.value_as_double(i)), static_cast<float>(at * at));
    ASSERT_EQ(each.value_as_double(i), 1) << i;
  }
}

TEST(ReferenceKernels, IntegerDivisionByZeroIsAnErrorThatNamesTheNode) {
  const Tensor zero = Tensor::int64s({0});
  try {
    evaluate("Div", {Tensor::int64s({1}), zero}, {DataType::kInt64, {1}});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("division by zero"));
    EXPECT_THAT(error.what(), testing::HasSubstr("Div"));
  }
}

TEST(ReferenceKernels, ModTakesTheDivisorsSign) {
  EXPECT_THAT(
      evaluate("Mod", {Tensor::int64s({-7, 7}), Tensor::int64s({3, -3})}, {DataType::kInt64, {2}})
          .as_int64s(),
      ElementsAre(2, -2));
}

TEST(ReferenceKernels, ReduceSumOverAnyAxes) {
  const Tensor x = floats({2, 3, 2}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
  const auto sum = [&](std::vector<int64_t> axes, Shape shape) {
    return values(evaluate("ReduceSum", {x, Tensor::int64s(std::move(axes))},
                           {DataType::kFloat32, std::move(shape)}, {{"keepdims", int64_t{0}}}));
  };
  EXPECT_THAT(sum({1}, {2, 2}), ElementsAre(9, 12, 27, 30));
  EXPECT_THAT(sum({0, 2}, {3}), ElementsAre(18, 26, 34));
  EXPECT_THAT(sum({-1, 0, 1}, {}), ElementsAre(78));
}

TEST(ReferenceKernels, ReductionsOfNothing) {
  const Tensor empty(Type{DataType::kFloat32, {0, 2}});
  const Tensor axes = Tensor::int64s({0});
  const Type result{DataType::kFloat32, {1, 2}};
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_THAT(values(evaluate("ReduceSum", {empty, axes}, result)), ElementsAre(0, 0));
  EXPECT_THAT(values(evaluate("ReduceMax", {empty, axes}, result)),
              ElementsAre(-infinity, -infinity));
  EXPECT_THAT(values(evaluate("ReduceLogSumExp", {empty, axes}, result)),
              ElementsAre(-infinity, -infinity));
}

TEST(ReferenceKernels, SumsKeepWhatFloatWouldLose) {
  std::vector<float> terms(1 << 12, 1.0F);
  terms[0] = 0x1p25F;
  const Tensor x = floats({1 << 12}, terms);
  const Tensor sum = evaluate("ReduceSum", {x, Tensor::int64s({0})}, {DataType::kFloat32, {1}});
  EXPECT_EQ(sum.value_as_double(0), 0x1p25 + 4096);
}

TEST(ReferenceKernels, MatMulBroadcastsBatches) {
  const Tensor a = floats({2, 1, 1, 2}, {1, 2, 3, 4});
  const Tensor b = floats({2, 2, 1}, {1, 10, 100, 1000});
  EXPECT_THAT(values(evaluate("MatMul", {a, b}, {DataType::kFloat32, {2, 2, 1, 1}})),
              ElementsAre(21, 2100, 43, 4300));
}

TEST(ReferenceKernels, MatMulOverAnEmptyAxisIsZero) {
  const Tensor a(Type{DataType::kFloat32, {2, 0}});
  const Tensor b(Type{DataType::kFloat32, {0, 2}});
  EXPECT_THAT(values(evaluate("MatMul", {a, b}, {DataType::kFloat32, {2, 2}})),
              ElementsAre(0, 0, 0, 0));
}

TEST(ReferenceKernels, SliceBackwardsAndClamped) {
  const Tensor x = floats({5}, {0, 1, 2, 3, 4});
  const auto slice = [&](int64_t start, int64_t end, int64_t step, int64_t extent) {
    return values(evaluate("Slice",
                           {x, Tensor::int64s({start}), Tensor::int64s({end}), Tensor::int64s({0}),
                            Tensor::int64s({step})},
                           {DataType::kFloat32, {extent}}));
  };
  EXPECT_THAT(slice(-2, std::numeric_limits<int64_t>::max(), 1, 2), ElementsAre(3, 4));
  EXPECT_THAT(slice(100, std::numeric_limits<int64_t>::min(), -2, 3), ElementsAre(4, 2, 0));
}

TEST(ReferenceKernels, PadGrowsAndCuts) {
  const Tensor x = floats({2, 3}, {1, 2, 3, 4, 5, 6});
  const Tensor pads = Tensor::int64s({1, -1, 0, 1});
  const Tensor value = Tensor::scalar(DataType::kFloat32, 9);
  EXPECT_THAT(values(evaluate("Pad", {x, pads, value}, {DataType::kFloat32, {3, 3}})),
              ElementsAre(9, 9, 9, 2, 3, 9, 5, 6, 9));
}

TEST(ReferenceKernels, PadAxesInAnyOrder) {
  const Tensor x = floats({1, 2}, {1, 2});
  const Tensor pads = Tensor::int64s({1, 0, 0, 1});  // begin of axis 1, of axis 0, ends likewise
  EXPECT_THAT(values(evaluate("Pad", {x, pads, Tensor(), Tensor::int64s({-1, 0})},
                              {DataType::kFloat32, {2, 3}})),
              ElementsAre(0, 1, 2, 0, 0, 0));
}

TEST(ReferenceKernels, ScatterNDAddsRepeatedRows) {
  const Tensor zeros = Tensor(Type{DataType::kFloat32, {3, 2}});
  const Tensor rows = Tensor::from_values<int64_t>({3, 1}, std::vector<int64_t>{2, 0, -1});
  const Tensor updates = floats({3, 2}, {1, 2, 3, 4, 5, 6});
  EXPECT_THAT(values(evaluate("ScatterND", {zeros, rows, updates}, {DataType::kFloat32, {3, 2}},
                              {{"reduction", std::string("add")}})),
              ElementsAre(3, 4, 0, 0, 6, 8));
}

TEST(ReferenceKernels, AnIndexOutsideTheTableIsAnError) {
  const Tensor table = floats({2, 1}, {1, 2});
  EXPECT_THROW(evaluate("Gather", {table, Tensor::int64s({2})}, {DataType::kFloat32, {1, 1}}),
               Error);
  EXPECT_THROW(evaluate("Gather", {table, Tensor::int64s({-3})}, {DataType::kFloat32, {1, 1}}),
               Error);
}

TEST(ReferenceKernels, SoftmaxSurvivesLargeScores) {
  const Tensor x = floats({1, 2}, {1000, 1000});
  EXPECT_THAT(values(evaluate("Softmax", {x}, {DataType::kFloat32, {1, 2}})),
              ElementsAre(0.5F, 0.5F));
}

TEST(ReferenceKernels, RandomNumbersRepeatAndAreSpread) {
  const Tensor like(Type{DataType::kFloat32, {1000}});
  const ir::Attributes seed = {{"seed", 3.0F}};
  const Tensor first = evaluate("RandomUniformLike", {like}, like.type(), seed);
  EXPECT_TRUE(first.identical(evaluate("RandomUniformLike", {like}, like.type(), seed)));
  const Tensor other = evaluate("RandomUniformLike", {like}, like.type(), {{"seed", 4.0F}});
  EXPECT_FALSE(first.identical(other));
  double mean = 0;
  for (float value : first.values<float>()) mean += value / 1000;
  EXPECT_NEAR(mean, 0.5, 0.05);
}

TEST(ReferenceKernels, DropoutScalesWhatItKeeps) {
  const Tensor ones = Tensor::filled({DataType::kFloat32, {1000}}, 1);
  const Tensor dropped =
      evaluate("Dropout",
               {ones, Tensor::scalar(DataType::kFloat32, 0.75), Tensor::scalar(DataType::kBool, 1)},
               ones.type(), {{"seed", int64_t{1}}});
  int kept = 0;
  for (float value : dropped.values<float>()) {
    ASSERT_TRUE(value == 0 || value == 4);
    kept += static_cast<int>(value == 4);
  }
  EXPECT_NEAR(kept, 250, 50);
}

TEST(ReferenceKernels, CastSaturatesAndRounds) {
  const Tensor x = floats({4}, {-1.7F, 1e30F, NAN, 2.5F});
  EXPECT_THAT(evaluate("Cast", {x}, {DataType::kInt64, {4}}).as_int64s(),
              ElementsAre(-1, std::numeric_limits<int64_t>::max(), 0, 2));
  EXPECT_EQ(
      evaluate("Cast", {Tensor::scalar(DataType::kFloat32, 1 + 0x1p-8)}, {DataType::kBFloat16, {}})
          .value_as_double(0),
      1);
}

TEST(ReferenceKernels, EmptyTensorsAreFine) {
  const Tensor empty(Type{DataType::kFloat32, {0, 3}});
  EXPECT_EQ(evaluate("Transpose", {empty}, {DataType::kFloat32, {3, 0}}).num_elements(), 0);
  EXPECT_EQ(evaluate("Concat", {empty, floats({1, 3}, {1, 2, 3})}, {DataType::kFloat32, {1, 3}},
                     {{"axis", int64_t{0}}})
                .num_elements(),
            3);
}

TEST(ReferenceKernels, OperatorsWithoutAKernelAreNamed) {
  ir::Graph graph;
  const NodeId id = graph.add_node("Frobnicate", {}, {Type{DataType::kFloat32, {}}});
  EXPECT_THROW(reference::evaluate(graph, graph.node(id), {}), Error);
  EXPECT_EQ(reference::find_kernel("com.microsoft", "Add"), nullptr);
}

}  // namespace
}  // namespace autosp

// What 16-bit operators are taken apart into: computed in float32, rounded once.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "ir/builder.h"
#include "support/run_graph.h"
#include "transforms/canonicalize/canonicalize.h"

namespace autosp::transforms {
namespace {

using ir::Builder;
using ir::DataType;
using ir::Graph;
using ir::Shape;
using ir::Tensor;
using ir::Type;
using test::run_graph;
using test::Tensors;

constexpr auto kHalf = DataType::kFloat16;
constexpr auto kBrain = DataType::kBFloat16;
constexpr auto kFloat = DataType::kFloat32;

struct Example {
  Graph graph;
  Builder build{graph};

  ValueId microsoft(const std::string& op, std::vector<ValueId> inputs, Type result,
                    ir::Attributes attributes = {}) {
    return build.node(op, std::move(inputs), std::move(result), std::move(attributes),
                      std::string(ir::kMicrosoftDomain));
  }
  // Output "y", computed after `pass`.
  Tensor run(ValueId y, Graph (*pass)(const Graph&), const Tensors& feeds) {
    const Type type = graph.type(y);
    graph.add_output("y", y);
    Tensor got = run_graph(pass(graph), feeds).at("y");
    EXPECT_EQ(got.type(), type);
    return got;
  }
};

// 2000 times 100 is no float16; 700 times 1 is no bfloat16 either, having 8 bits.
TEST(SixteenBit, MeansOfManyElements) {
  for (const char* op : {"ReduceMean", "ReduceL2", "ReduceLogSumExp"}) {
    for (const DataType dtype : {kHalf, kBrain}) {
      Example e;
      const ValueId x = e.graph.add_input("x", {dtype, {2000}});
      const Tensors feeds = {{"x", Tensor::filled({dtype, {2000}}, 100)}};
      const double got =
          e.run(e.build.reduce(op, x, {0}, false), decompose_means, feeds).value_as_double(0);
      const double want = op == std::string("ReduceMean") ? 100
                          : op == std::string("ReduceL2") ? 100 * std::sqrt(2000)
                                                          : 100 + std::log(2000);
      EXPECT_NEAR(got, want, want * (dtype == kHalf ? 0x1p-11 : 0x1p-8)) << op;
    }
  }
}

TEST(SixteenBit, TheMeanOfSeveralTensorsDoesNotOverflow) {
  Example e;
  const ValueId x = e.graph.add_input("x", {kHalf, {3}});
  const ValueId y = e.build.node("Mean", {x, x}, {kHalf, {3}});
  const Tensors feeds = {{"x", Tensor::filled({kHalf, {3}}, 60000)}};
  EXPECT_EQ(e.run(y, decompose_means, feeds).value_as_double(1),
            Tensor::scalar(kHalf, 60000).value_as_double(0));
}

// 70000 tokens: neither their count nor the sum of their losses is a float16.
TEST(SixteenBit, LossesOverMoreTokensThanFit) {
  constexpr int64_t kTokens = 70000;
  for (const bool ignores : {false, true}) {
    for (const bool weighted : {false, true}) {
      Example e;
      const ValueId scores = e.graph.add_input("scores", {kHalf, {kTokens, 2}});
      const ValueId labels = e.graph.add_input("labels", {DataType::kInt64, {kTokens}});
      std::vector<ValueId> inputs = {scores, labels};
      if (weighted) inputs.push_back(e.graph.add_input("weights", {kHalf, {2}}));
      ir::Attributes attributes{{"reduction", std::string("mean")}};
      if (ignores) attributes.set("ignore_index", int64_t{-100});
      const Tensor loss =
          e.run(e.build.node("SoftmaxCrossEntropyLoss", inputs, {kHalf, {}}, attributes),
                decompose_losses,
                {{"scores", Tensor({kHalf, {kTokens, 2}})},
                 {"labels", Tensor({DataType::kInt64, {kTokens}})},
                 {"weights", Tensor::filled({kHalf, {2}}, 2)}});
      EXPECT_NEAR(loss.value_as_double(0), std::log(2), 1e-3);
    }
  }
}

TEST(SixteenBit, LossGradientsOverMoreTokensThanFit) {
  constexpr int64_t kTokens = 70000;
  Example e;
  const ValueId dy = e.graph.add_input("dy", {kHalf, {}});
  const ValueId log_p = e.graph.add_input("log_p", {kHalf, {kTokens, 2}});
  const ValueId labels = e.graph.add_input("labels", {DataType::kInt64, {kTokens}});
  const ValueId dx = e.microsoft("SoftmaxCrossEntropyLossGrad", {dy, log_p, labels},
                                 {kHalf, {kTokens, 2}}, {{"ignore_index", int64_t{-100}}});
  // The loss is scaled by 32768, as mixed-precision training does.
  const Tensor got = e.run(dx, lower_microsoft_operators,
                           {{"dy", Tensor::filled({kHalf, {}}, 32768)},
                            {"log_p", Tensor::filled({kHalf, {kTokens, 2}}, -std::log(2))},
                            {"labels", Tensor({DataType::kInt64, {kTokens}})}});
  EXPECT_NEAR(got.value_as_double(0), -0.5 * 32768 / kTokens, 1e-3);
  EXPECT_NEAR(got.value_as_double(1), 0.5 * 32768 / kTokens, 1e-3);
}

TEST(SixteenBit, RmsNormsOfLargeActivations) {
  Example e;
  const ValueId x = e.graph.add_input("x", {kHalf, {2, 64}});
  const ValueId scale = e.graph.add_input("scale", {kHalf, {64}});
  const ValueId y = e.microsoft("SimplifiedLayerNormalization", {x, scale}, {kHalf, {2, 64}},
                                {{"stash_type", static_cast<int64_t>(kHalf)}});
  const Tensor got = e.run(
      y, lower_microsoft_operators,
      {{"x", Tensor::filled({kHalf, {2, 64}}, 1000)}, {"scale", Tensor::filled({kHalf, {64}}, 3)}});
  EXPECT_NEAR(got.value_as_double(5), 3, 1e-2);
}

// dX = (g - mean(g) - x̂ mean(g x̂)) / σ with σ saved as float16: dY = 5000 in every place has none.
TEST(SixteenBit, NormGradientsOfScaledLosses) {
  Example e;
  const ValueId dy = e.graph.add_input("dy", {kHalf, {1, 64}});
  const ValueId x = e.graph.add_input("x", {kHalf, {1, 64}});
  const ValueId scale = e.graph.add_input("scale", {kHalf, {64}});
  const ValueId mean = e.graph.add_input("mean", {kHalf, {1, 1}});
  const ValueId inverse = e.graph.add_input("inverse", {kHalf, {1, 1}});
  const ValueId dx =
      e.microsoft("LayerNormalizationGrad", {dy, x, scale, mean, inverse}, {kHalf, {1, 64}});
  const Tensor got = e.run(dx, lower_microsoft_operators,
                           {{"dy", Tensor::filled({kHalf, {1, 64}}, 5000)},
                            {"x", Tensor({kHalf, {1, 64}})},
                            {"scale", Tensor::filled({kHalf, {64}}, 1)},
                            {"mean", Tensor({kHalf, {1, 1}})},
                            {"inverse", Tensor::filled({kHalf, {1, 1}}, 1)}});
  EXPECT_EQ(got.value_as_double(7), 0);
}

// 1 - 0.1 is 0.8984375 in bfloat16, and 1.5 / 0.8984375 rounds up where 1.5 / 0.9 rounds down.
TEST(SixteenBit, DropoutDividesByTheShareItKeeps) {
  constexpr double kValue = 1.5;
  const double want = Tensor::scalar(kBrain, kValue / 0.9).value_as_double(0);
  ASSERT_NE(want, Tensor::scalar(kBrain, kValue / 0.8984375).value_as_double(0));
  const Type type{kBrain, {8}};
  const Tensors feeds = {{"x", Tensor::filled(type, kValue)},
                         {"mask", Tensor::filled({DataType::kBool, {8}}, 1)}};
  Example forward;
  const ValueId x = forward.graph.add_input("x", type);
  const ValueId ratio = forward.build.scalar(kFloat, 0.1);
  const ValueId yes = forward.build.scalar(DataType::kBool, 1);
  const Tensor y =
      forward.run(forward.build.node("Dropout", {x, ratio, yes}, type), decompose_random, feeds);
  EXPECT_THAT((std::vector{y.value_as_double(0), y.value_as_double(1), y.value_as_double(2)}),
              testing::Contains(want));

  Example backward;
  const ValueId dy = backward.graph.add_input("x", type);
  const ValueId mask = backward.graph.add_input("mask", {DataType::kBool, {8}});
  const ValueId dx = backward.microsoft(
      "DropoutGrad",
      {dy, mask, backward.build.scalar(kFloat, 0.1), backward.build.scalar(DataType::kBool, 1)},
      type);
  EXPECT_EQ(backward.run(dx, lower_microsoft_operators, feeds).value_as_double(0), want);
}

}  // namespace
}  // namespace autosp::transforms

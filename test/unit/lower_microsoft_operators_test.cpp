// The lowerings of com.microsoft operators: gradients against central differences of the forward
// operator in float64, the others against what they are defined as.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "ir/builder.h"
#include "support/run_graph.h"
#include "transforms/canonicalize/canonicalize.h"

namespace autosp::transforms {
namespace {

using ir::Attributes;
using ir::Builder;
using ir::DataType;
using ir::Graph;
using ir::Shape;
using ir::Tensor;
using ir::Type;
using test::run_graph;
using test::Tensors;

constexpr auto kDouble = DataType::kFloat64;

// A graph under construction. Inputs are float64 unless said otherwise.
struct Example {
  Graph graph;
  Builder build{graph};

  ValueId input(const std::string& name, Shape shape, DataType dtype = kDouble) {
    return graph.add_input(name, {dtype, std::move(shape)});
  }
  ValueId constant(std::vector<int64_t> values) { return build.int64s(std::move(values)); }
  std::vector<ValueId> microsoft(const std::string& op, std::vector<ValueId> inputs,
                                 std::vector<Type> results, Attributes attributes = {}) {
    return build.node(op, std::move(inputs), std::move(results), std::move(attributes),
                      std::string(ir::kMicrosoftDomain));
  }
  void output(const std::string& name, ValueId value) { graph.add_output(name, value); }
};

Graph lower(const Graph& graph) {
  Graph lowered = lower_microsoft_operators(graph);
  for (const ir::Node& node : lowered.nodes()) EXPECT_EQ(node.domain, "") << node.op;
  return lowered;
}

double weighted_sum(const Tensor& y, const Tensor& dy) {
  double sum = 0;
  for (int64_t k = 0; k < y.num_elements(); ++k)
    sum += y.value_as_double(k) * dy.value_as_double(k);
  return sum;
}

// `forward` computes the output "y"; `backward` reads the same inputs and "dy", and computes "d<x>"
// for some inputs x. Each must be the derivative of sum(dy · y) with respect to x.
void expect_derivative(const Graph& forward, const Graph& backward, Tensors feeds = {}) {
  const Graph lowered = lower(backward);
  for (const auto& [name, tensor] : test::random_feeds(forward, {.num_tokens = 5})) {
    feeds.emplace(name, tensor);
  }
  for (const auto& [name, tensor] : test::random_feeds(backward, {.num_tokens = 5})) {
    feeds.emplace(name, tensor);
  }
  constexpr double kStep = 1e-5;
  const Tensors got = run_graph(lowered, feeds);
  ASSERT_FALSE(got.empty());
  for (const auto& [name, gradient] : got) {
    const Tensor x = feeds.at(name.substr(1));
    Tensor want(x.type());
    for (int64_t k = 0; k < x.num_elements(); ++k) {
      const auto moved = [&](double by) {
        Tensor y(x.type(), x.bytes());
        y.mutable_values<double>()[static_cast<size_t>(k)] += by;
        Tensors changed = feeds;
        changed[name.substr(1)] = y;
        return weighted_sum(run_graph(forward, changed).at("y"), feeds.at("dy"));
      };
      want.mutable_values<double>()[static_cast<size_t>(k)] =
          (moved(kStep) - moved(-kStep)) / (2 * kStep);
    }
    test::expect_close({{name, gradient}}, {{name, want}}, 1e-6);
  }
}

// y = forward(x) elementwise; the gradient operator takes dY and either X or Y.
void expect_elementwise(const std::string& op, const std::function<ValueId(Builder&, ValueId)>& f,
                        bool reads_result = false, const Attributes& attributes = {}) {
  SCOPED_TRACE(op);
  const Shape shape = {3, 5};
  Example forward;
  forward.output("y", f(forward.build, forward.input("x", shape)));
  Example backward;
  const ValueId dy = backward.input("dy", shape);
  const ValueId x = backward.input("x", shape);
  const ValueId saved = reads_result ? f(backward.build, x) : x;
  backward.output("dx", backward.microsoft(op, {dy, saved}, {{kDouble, shape}}, attributes)[0]);
  expect_derivative(forward.graph, backward.graph);
}

ValueId gelu(Builder& build, ValueId x, const std::string& approximation) {
  return build.node("Gelu", {x}, build.graph().type(x), {{"approximate", approximation}});
}

TEST(LowerMicrosoftOperators, ActivationGradients) {
  expect_elementwise("GeluGrad", [](Builder& b, ValueId x) { return gelu(b, x, "none"); });
  expect_elementwise("FastGeluGrad", [](Builder& b, ValueId x) { return gelu(b, x, "tanh"); });
  expect_elementwise("QuickGeluGrad",
                     [](Builder& b, ValueId x) {
                       return b.binary(
                           "Mul", x, b.unary("Sigmoid", b.binary("Mul", x, b.scalar_like(x, 1.5))));
                     },
                     false, {{"alpha", 1.5F}});
  expect_elementwise("ReluGrad", [](Builder& b, ValueId x) { return b.unary("Relu", x); });
  expect_elementwise(
      "SigmoidGrad", [](Builder& b, ValueId x) { return b.unary("Sigmoid", x); }, true);
  expect_elementwise(
      "TanhGrad", [](Builder& b, ValueId x) { return b.unary("Tanh", x); }, true);
}

TEST(LowerMicrosoftOperators, SoftmaxGradients) {
  for (const int64_t axis : {-1, 0}) {
    expect_elementwise("SoftmaxGrad_13",
                       [=](Builder& b, ValueId x) { return b.softmax("Softmax", x, axis); }, true,
                       {{"axis", axis}});
    expect_elementwise("LogSoftmaxGrad_13",
                       [=](Builder& b, ValueId x) { return b.softmax("LogSoftmax", x, axis); },
                       true, {{"axis", axis}});
  }
}

TEST(LowerMicrosoftOperators, BiasedActivationsAndTheirGradients) {
  for (const bool fast : {false, true}) {
    const Shape shape = {4, 3};
    Example example;
    const ValueId x = example.input("x", shape);
    const ValueId bias = example.input("bias", {3});
    example.output(
        "y", example.microsoft(fast ? "FastGelu" : "BiasGelu", {x, bias}, {{kDouble, shape}})[0]);
    Example forward;
    forward.output("y", gelu(forward.build,
                             forward.build.binary("Add", forward.input("x", shape),
                                                  forward.input("bias", {3})),
                             fast ? "tanh" : "none"));
    const Tensors feeds = test::random_feeds(forward.graph);
    test::expect_close(run_graph(lower(example.graph), feeds), run_graph(forward.graph, feeds),
                       1e-12);
    Example backward;
    const ValueId dy = backward.input("dy", shape);
    const ValueId again = backward.input("x", shape);
    backward.output(
        "dx", backward.microsoft(fast ? "BiasFastGeluGrad_dX" : "BiasGeluGrad_dX",
                                 {dy, again, backward.input("bias", {3})}, {{kDouble, shape}})[0]);
    expect_derivative(forward.graph, backward.graph);
  }
}

TEST(LowerMicrosoftOperators, NormalizationGradients) {
  const Shape shape = {2, 3, 4};
  for (const bool centered : {false, true}) {
    const auto norm = [&](Example& e, ValueId x, ValueId scale) {
      const Type statistics{kDouble, {2, 3, 1}};
      if (!centered) {
        return e.microsoft("SimplifiedLayerNormalization", {x, scale},
                           {{kDouble, shape}, statistics}, {{"stash_type", int64_t{11}}});
      }
      return e.build.node("LayerNormalization", {x, scale, e.input("bias", {4})},
                          {{kDouble, shape}, statistics, statistics},
                          {{"stash_type", int64_t{11}}});
    };
    Example forward;
    const ValueId x = forward.input("x", shape);
    forward.output("y", norm(forward, x, forward.input("scale", {4}))[0]);

    Example backward;
    const ValueId dy = backward.input("dy", shape);
    const ValueId again = backward.input("x", shape);
    const ValueId scale = backward.input("scale", {4});
    const auto saved = norm(backward, again, scale);
    std::vector<ValueId> inputs = {dy, again, scale, saved[1]};
    std::vector<Type> types = {{kDouble, shape}, {kDouble, {4}}};
    if (centered) {
      inputs.push_back(saved[2]);
      types.push_back({kDouble, {4}});
    }
    const auto gradients = backward.microsoft(
        centered ? "LayerNormalizationGrad" : "SimplifiedLayerNormalizationGrad", inputs, types);
    backward.output("dx", gradients[0]);
    backward.output("dscale", gradients[1]);
    if (centered) backward.output("dbias", gradients[2]);
    expect_derivative(lower(forward.graph), backward.graph);
  }
}

TEST(LowerMicrosoftOperators, RmsNormDividesByTheRootOfTheMeanSquare) {
  Example e;
  const ValueId x = e.input("x", {2, 2}, DataType::kFloat32);
  const ValueId scale = e.input("scale", {2}, DataType::kFloat32);
  // In the default domain, as some exporters write it.
  e.output("y", e.build.node("SimplifiedLayerNormalization", {x, scale},
                             {DataType::kFloat32, {2, 2}}, {{"epsilon", 0.0F}}));
  const std::vector<float> numbers = {3, 4, 1, 1};
  const std::vector<float> scales = {1, 2};
  const Tensors got = run_graph(lower_microsoft_operators(e.graph),
                                {{"x", Tensor::from_values<float>({2, 2}, numbers)},
                                 {"scale", Tensor::from_values<float>({2}, scales)}});
  const float root = std::sqrt(12.5F);
  EXPECT_THAT(
      got.at("y").values<float>(),
      testing::Pointwise(testing::FloatNear(1e-6F), std::vector<float>{3 / root, 8 / root, 1, 2}));
}

// As ONNX Runtime computes them: with inputs this small, epsilon decides.
TEST(LowerMicrosoftOperators, EachNormHasItsOwnDefaultEpsilon) {
  for (const auto& [op, epsilon] : {std::pair{"SimplifiedLayerNormalization", 1e-5F},
                                    {"SkipSimplifiedLayerNormalization", 1e-12F}}) {
    SCOPED_TRACE(op);
    Example e;
    const ValueId x = e.input("x", {1, 2}, DataType::kFloat32);
    const ValueId scale = e.input("scale", {2}, DataType::kFloat32);
    const bool skip = std::string(op).starts_with("Skip");
    const std::vector<ValueId> inputs = skip ? std::vector{x, x, scale} : std::vector{x, scale};
    e.output("y", e.microsoft(op, inputs, {{DataType::kFloat32, {1, 2}}})[0]);
    const Tensors got = run_graph(lower_microsoft_operators(e.graph),
                                  {{"x", Tensor::filled({DataType::kFloat32, {1, 2}}, 1e-4)},
                                   {"scale", Tensor::filled({DataType::kFloat32, {2}}, 1)}});
    const float norm = skip ? 2e-4F : 1e-4F;
    EXPECT_NEAR(got.at("y").values<float>()[0], norm / std::sqrt(norm * norm + epsilon), 1e-5F);
  }
}

TEST(LowerMicrosoftOperators, SkipNormalizationsAddFirst) {
  const Shape shape = {2, 3, 4};
  const Type type{kDouble, shape};
  for (const bool centered : {false, true}) {
    const auto inputs = [&](Example& e) {
      return std::vector<ValueId>{e.input("x", shape), e.input("skip", shape),
                                  e.input("scale", {4}), e.input("bias", {4})};
    };
    Example fused;
    const auto in = inputs(fused);
    const auto got = fused.microsoft(
        centered ? "SkipLayerNormalization" : "SkipSimplifiedLayerNormalization", in,
        {type, {}, {}, type}, {{"epsilon", 1e-3F}, {"stash_type", int64_t{11}}});
    fused.output("y", got[0]);
    fused.output("sum", got[3]);

    Example plain;
    const auto p = inputs(plain);
    ValueId sum = plain.build.binary("Add", p[0], p[1]);
    if (!centered) sum = plain.build.binary("Add", sum, p[3]);
    const Attributes attributes{{"epsilon", 1e-3F}, {"stash_type", int64_t{11}}};
    plain.output(
        "y", centered ? plain.build.node("LayerNormalization", {sum, p[2], p[3]}, type, attributes)
                      : plain.microsoft("SimplifiedLayerNormalization", {sum, p[2]}, {type},
                                        attributes)[0]);
    plain.output("sum", sum);
    const Tensors feeds = test::random_feeds(plain.graph);
    test::expect_close(run_graph(lower(fused.graph), feeds), run_graph(lower(plain.graph), feeds),
                       1e-12);
  }
}

struct LossCase {
  std::string reduction;
  bool weighted;
  bool internal;  // the ignored label is an operand
  Shape inner;
};

class LowerLossGradient : public testing::TestWithParam<LossCase> {};

TEST_P(LowerLossGradient, IsTheLossesDerivative) {
  const LossCase& c = GetParam();
  Shape scores_shape = {6, 5};
  Shape labels_shape = {6};
  scores_shape.insert(scores_shape.end(), c.inner.begin(), c.inner.end());
  labels_shape.insert(labels_shape.end(), c.inner.begin(), c.inner.end());
  const Shape loss_shape = c.reduction == "none" ? labels_shape : Shape{};

  const auto inputs = [&](Example& e) {
    std::vector<ValueId> result = {e.input("x", scores_shape),
                                   e.input("labels", labels_shape, DataType::kInt64), ValueId()};
    if (c.weighted) result[2] = e.input("weights", {5});
    if (c.internal) result.push_back(e.build.scalar(DataType::kInt64, -100));
    return result;
  };
  Attributes attributes{{"reduction", c.reduction}};
  if (!c.internal) attributes.set("ignore_index", int64_t{-100});

  Example forward;
  const std::vector<Type> loss_types = {{kDouble, loss_shape}, {kDouble, scores_shape}};
  forward.output("y", c.internal ? forward.microsoft("SoftmaxCrossEntropyLossInternal",
                                                     inputs(forward), loss_types, attributes)[0]
                                 : forward.build.node("SoftmaxCrossEntropyLoss", inputs(forward),
                                                      loss_types, attributes)[0]);
  Example backward;
  std::vector<ValueId> in = inputs(backward);
  in[0] = backward.build.softmax("LogSoftmax", in[0], 1);
  in.insert(in.begin(), backward.input("dy", loss_shape));
  backward.output("dx", backward.microsoft(c.internal ? "SoftmaxCrossEntropyLossInternalGrad"
                                                      : "SoftmaxCrossEntropyLossGrad",
                                           in, {{kDouble, scores_shape}}, attributes)[0]);
  Tensors feeds;
  if (c.weighted) {
    feeds["weights"] = Tensor::from_values<double>({5}, std::vector<double>{1, 2, 0.5, 3, 1.5});
  }
  expect_derivative(lower(forward.graph), backward.graph, feeds);
}

INSTANTIATE_TEST_SUITE_P(
    Forms, LowerLossGradient,
    testing::Values(LossCase{"mean", false, false, {}}, LossCase{"mean", true, false, {}},
                    LossCase{"mean", false, true, {3}}, LossCase{"mean", true, true, {}},
                    LossCase{"sum", true, false, {3}}, LossCase{"none", false, false, {}},
                    LossCase{"none", true, true, {2}}));

TEST(LowerMicrosoftOperators, ALossGradientWithoutValidLabelsIsZero) {
  Example e;
  const ValueId dy = e.input("dy", {});
  const ValueId log_p = e.input("log_p", {2, 3});
  const ValueId labels = e.build.int64s({-100, -100});
  e.output("dx", e.microsoft("SoftmaxCrossEntropyLossGrad", {dy, log_p, labels},
                             {{kDouble, {2, 3}}}, {{"ignore_index", int64_t{-100}}})[0]);
  const Tensors got = run_graph(lower(e.graph), {{"dy", Tensor::scalar(kDouble, 1)},
                                                 {"log_p", Tensor::filled({kDouble, {2, 3}}, -1)}});
  EXPECT_TRUE(got.at("dx").all_zero());
}

TEST(LowerMicrosoftOperators, GatherGradients) {
  for (const int64_t axis : {0, 1, -1}) {
    const Shape shape = {4, 5, 6};
    const Tensor positions = Tensor::int64s({1, 0, 2, 1, 3, 1}).reshaped({2, 3});
    Example forward;
    forward.output("y", forward.build.gather(forward.input("x", shape),
                                             forward.build.constant(positions), axis));
    const Shape taken = forward.build.shape(forward.graph.outputs()[0].value);
    Example backward;
    const ValueId dy = backward.input("dy", taken);
    backward.input("x", shape);
    backward.output(
        "dx", backward.microsoft("GatherGrad",
                                 {backward.constant(shape), backward.build.constant(positions), dy},
                                 {{kDouble, shape}}, {{"axis", axis}})[0]);
    expect_derivative(forward.graph, backward.graph);
  }
}

TEST(LowerMicrosoftOperators, GatherElementsGradient) {
  const Shape shape = {4, 3};
  const Tensor positions = Tensor::int64s({1, 0, 2, 1, 1, 1}).reshaped({2, 3});
  Example forward;
  forward.output("y", forward.build.gather_elements(forward.input("x", shape),
                                                    forward.build.constant(positions), 0));
  Example backward;
  const ValueId dy = backward.input("dy", {2, 3});
  backward.input("x", shape);
  backward.output(
      "dx", backward.microsoft("GatherElementsGrad",
                               {dy, backward.constant(shape), backward.build.constant(positions)},
                               {{kDouble, shape}}, {{"axis", int64_t{0}}})[0]);
  expect_derivative(forward.graph, backward.graph);
}

TEST(LowerMicrosoftOperators, GatherNDGradient) {
  for (const int64_t batch_dims : {0, 1}) {
    const Shape shape = {2, 3, 4};
    const Tensor positions =
        batch_dims == 0 ? Tensor::int64s({1, 2, 0, 0, 1, 2}).reshaped({3, 2})
                        : Tensor::int64s({1, 2, 0, 0, 1, 2, 1, 2, 0, 3, 0, 3}).reshaped({2, 3, 2});
    const Shape taken = batch_dims == 0 ? Shape{3, 4} : Shape{2, 3};
    const Attributes attributes{{"batch_dims", batch_dims}};
    Example forward;
    forward.output(
        "y", forward.build.node("GatherND",
                                {forward.input("x", shape), forward.build.constant(positions)},
                                {kDouble, taken}, attributes));
    Example backward;
    const ValueId dy = backward.input("dy", taken);
    backward.input("x", shape);
    backward.output(
        "dx", backward.microsoft("GatherNDGrad",
                                 {backward.constant(shape), backward.build.constant(positions), dy},
                                 {{kDouble, shape}}, attributes)[0]);
    expect_derivative(forward.graph, backward.graph);
  }
}

TEST(LowerMicrosoftOperators, SliceGradient) {
  struct Case {
    std::vector<int64_t> starts, ends, axes, steps;
    Shape taken;
  };
  const Shape shape = {5, 7};
  for (const Case& c :
       {Case{{1}, {INT64_MAX}, {0}, {1}, {4, 7}}, Case{{0, -4}, {-1, -1}, {0, 1}, {1, 1}, {4, 3}},
        Case{{1, 6}, {5, -8}, {0, 1}, {3, -2}, {2, 4}}}) {
    const auto operands = [&](Example& e, ValueId first) {
      return std::vector<ValueId>{first, e.constant(c.starts), e.constant(c.ends),
                                  e.constant(c.axes), e.constant(c.steps)};
    };
    Example forward;
    forward.output("y", forward.build.node("Slice", operands(forward, forward.input("x", shape)),
                                           {kDouble, c.taken}));
    Example backward;
    const ValueId dy = backward.input("dy", c.taken);
    backward.input("x", shape);
    std::vector<ValueId> inputs = operands(backward, dy);
    inputs.insert(inputs.begin() + 1, backward.constant(shape));
    backward.output("dx", backward.microsoft("SliceGrad", inputs, {{kDouble, shape}})[0]);
    expect_derivative(forward.graph, backward.graph);
  }
}

TEST(LowerMicrosoftOperators, ConcatAndSplitForTraining) {
  Example e;
  const ValueId x = e.input("x", {2, 3});
  const ValueId y = e.input("y", {2, 1});
  const auto joined =
      e.microsoft("ConcatTraining", {x, y}, {{kDouble, {2, 4}}, {DataType::kInt64, {2}}},
                  {{"axis", int64_t{-1}}});
  const auto parts = e.microsoft("SplitTraining", {joined[0], joined[1]},
                                 {{kDouble, {2, 3}}, {kDouble, {2, 1}}}, {{"axis", int64_t{-1}}});
  e.output("x_again", parts[0]);
  e.output("y_again", parts[1]);
  const Tensors feeds = test::random_feeds(e.graph);
  const Tensors got = run_graph(lower(e.graph), feeds);
  EXPECT_TRUE(got.at("x_again").identical(feeds.at("x")));
  EXPECT_TRUE(got.at("y_again").identical(feeds.at("y")));
}

TEST(LowerMicrosoftOperators, FusedMatMulTransposesAndScales) {
  struct Case {
    bool trans_a, trans_b, batch_a, batch_b;
    Shape a, b;
    std::vector<int64_t> order_a, order_b;  // the transposes that it stands for
  };
  for (const Case& c :
       {Case{false, false, false, false, {2, 3, 4}, {2, 4, 5}, {0, 1, 2}, {0, 1, 2}},
        Case{true, true, false, false, {2, 4, 3}, {2, 5, 4}, {0, 2, 1}, {0, 2, 1}},
        Case{false, false, true, false, {3, 2, 4}, {2, 4, 5}, {1, 0, 2}, {0, 1, 2}},
        Case{true, false, true, true, {4, 2, 3}, {4, 2, 5}, {1, 2, 0}, {1, 0, 2}}}) {
    Example fused;
    const ValueId a = fused.input("a", c.a);
    const ValueId b = fused.input("b", c.b);
    fused.output("y", fused.microsoft("FusedMatMul", {a, b}, {{kDouble, {2, 3, 5}}},
                                      {{"alpha", 0.5F},
                                       {"transA", int64_t{c.trans_a}},
                                       {"transB", int64_t{c.trans_b}},
                                       {"transBatchA", int64_t{c.batch_a}},
                                       {"transBatchB", int64_t{c.batch_b}}})[0]);
    Example plain;
    const ValueId left = plain.build.transpose(plain.input("a", c.a), c.order_a);
    const ValueId right = plain.build.transpose(plain.input("b", c.b), c.order_b);
    const ValueId product = plain.build.matmul(left, right);
    plain.output("y", plain.build.binary("Mul", product, plain.build.scalar_like(product, 0.5)));
    const Tensors feeds = test::random_feeds(fused.graph);
    test::expect_close(run_graph(lower(fused.graph), feeds), run_graph(plain.graph, feeds), 1e-12);
  }
}

TEST(LowerMicrosoftOperators, DropoutGradientDividesByWhatIsKept) {
  Example e;
  const ValueId dy = e.input("dy", {4});
  const ValueId mask = e.input("mask", {4}, DataType::kBool);
  e.output("dx", e.microsoft("DropoutGrad",
                             {dy, mask, e.build.scalar(DataType::kFloat32, 0.75),
                              e.build.scalar(DataType::kBool, 1)},
                             {{kDouble, {4}}})[0]);
  Tensor kept(Type{DataType::kBool, {4}});
  kept.mutable_values<bool>()[1] = true;
  const Tensors got =
      run_graph(lower(e.graph), {{"dy", Tensor::filled({kDouble, {4}}, 2)}, {"mask", kept}});
  EXPECT_THAT(got.at("dx").values<double>(), testing::ElementsAre(0, 8, 0, 0));
}

// The forward operator drops nothing then, and its gradient is the gradient.
TEST(LowerMicrosoftOperators, DropoutGradientOutsideTrainingIsTheGradient) {
  for (const bool constant : {true, false}) {
    for (const bool training : {false, true}) {
      Example e;
      const ValueId dy = e.input("dy", {2});
      const ValueId mask = e.input("mask", {2}, DataType::kBool);
      const ValueId mode = constant ? e.build.scalar(DataType::kBool, training ? 1 : 0)
                                    : e.input("mode", {}, DataType::kBool);
      e.output("dx", e.microsoft("DropoutGrad",
                                 {dy, mask, e.build.scalar(DataType::kFloat32, 0.75), mode},
                                 {{kDouble, {2}}})[0]);
      const Tensors got =
          run_graph(lower(e.graph), {{"dy", Tensor::filled({kDouble, {2}}, 2)},
                                     {"mask", Tensor::filled({DataType::kBool, {2}}, 1)},
                                     {"mode", Tensor::scalar(DataType::kBool, training ? 1 : 0)}});
      EXPECT_EQ(got.at("dx").value_as_double(1), training ? 8 : 2);
    }
  }
}

// residual + dropout(x + bias); what is dropped follows from the name, which the Dropout keeps.
TEST(LowerMicrosoftOperators, FusedDropoutsDropUnderTheirNames) {
  for (const bool packed : {false, true}) {
    SCOPED_TRACE(packed);
    const Type type{DataType::kFloat32, {4, 50}};
    const Type mask_type = packed ? Type{DataType::kUInt32, {7}} : Type{DataType::kBool, {4, 50}};
    Example e;
    const ValueId x = e.input("x", type.shape, type.dtype);
    const ValueId bias = e.input("bias", {50}, type.dtype);
    const ValueId residual = e.input("residual", type.shape, type.dtype);
    const ValueId ratio = e.build.scalar(DataType::kFloat32, 0.25);
    const ValueId training = e.build.scalar(DataType::kBool, 1);
    const auto fused = e.microsoft(packed ? "BitmaskBiasDropout" : "BiasDropout",
                                   {x, bias, residual, ratio, training}, {type, mask_type});
    const std::string name = e.graph.producer(fused[0])->name;
    e.output("y", fused[0]);
    e.output("dx", e.microsoft(packed ? "BitmaskDropoutGrad" : "DropoutGrad",
                               {residual, fused[1], ratio, training}, {type})[0]);
    const Graph lowered = lower(e.graph);
    const auto dropout = std::ranges::find(lowered.nodes(), "Dropout", &ir::Node::op);
    ASSERT_NE(dropout, lowered.nodes().end());
    EXPECT_EQ(dropout->name, name);

    Example plain;
    const ValueId sum = plain.build.binary("Add", plain.input("x", type.shape, type.dtype),
                                           plain.input("bias", {50}, type.dtype));
    const NodeId drop = plain.graph.add_node(
        "Dropout",
        {sum, plain.build.scalar(DataType::kFloat32, 0.25), plain.build.scalar(DataType::kBool, 1)},
        {type, {DataType::kBool, type.shape}}, {}, "", {}, name);
    const ValueId dy = plain.input("residual", type.shape, type.dtype);
    const auto results = plain.graph.node(drop).outputs;
    plain.output("y", plain.build.binary("Add", results[0], dy));
    const ValueId share = plain.build.scalar(DataType::kFloat32, 0.75);
    plain.output("dx", plain.build.where(results[1], plain.build.binary("Div", dy, share),
                                         plain.build.scalar(DataType::kFloat32, 0)));
    const Tensors feeds = test::random_feeds(e.graph);
    test::expect_close(run_graph(lowered, feeds), run_graph(plain.graph, feeds));
  }
}

TEST(LowerMicrosoftOperators, APackedMaskIsForItsGradientAlone) {
  Example e;
  const Type type{DataType::kFloat32, {4, 50}};
  const auto results =
      e.microsoft("BitmaskDropout",
                  {e.input("x", type.shape, type.dtype), e.build.scalar(DataType::kFloat32, 0.25),
                   e.build.scalar(DataType::kBool, 1)},
                  {type, {DataType::kUInt32, {7}}});
  e.output("y", results[0]);
  e.output("bits", e.build.identity(results[1]));
  EXPECT_THROW(lower_microsoft_operators(e.graph), Error);
}

TEST(LowerMicrosoftOperators, ScaleAndReduceSumTraining) {
  Example e;
  const ValueId x = e.input("x", {2, 3});
  const ValueId by = e.build.constant(Tensor::filled({DataType::kFloat32, {1}}, 4));
  e.output("up", e.microsoft("Scale", {x, by}, {{kDouble, {2, 3}}})[0]);
  e.output("down",
           e.microsoft("Scale", {x, by}, {{kDouble, {2, 3}}}, {{"scale_down", int64_t{1}}})[0]);
  e.output("sum", e.microsoft("ReduceSumTraining", {x, e.constant({1})}, {{kDouble, {2}}},
                              {{"keepdims", int64_t{0}}})[0]);
  const Tensors got = run_graph(lower(e.graph), {{"x", Tensor::filled({kDouble, {2, 3}}, 2)}});
  EXPECT_EQ(got.at("up").value_as_double(5), 8);
  EXPECT_EQ(got.at("down").value_as_double(5), 0.5);
  EXPECT_EQ(got.at("sum").value_as_double(1), 6);
}

TEST(LowerMicrosoftOperators, AccumulatorsBecomeGradientOutputs) {
  Example e;
  const ValueId x = e.input("x", {3});
  const ValueId weight = e.input("layer.weight", {3});
  const ValueId buffer = e.input("layer.weight_grad.accumulation.buffer", {3});
  const ValueId reset = e.input("lazy_reset_grad", {1}, DataType::kBool);
  e.output("loss", e.build.reduce_sum(e.build.binary("Mul", x, weight), {0}, false));
  e.output("layer.weight_grad.accumulation.out",
           e.microsoft("InPlaceAccumulatorV2", {buffer, e.build.identity(x), reset},
                       {{DataType::kBool, {1}}})[0]);
  const Graph lowered = lower(e.graph);
  ASSERT_EQ(lowered.outputs().size(), 2U);
  EXPECT_EQ(lowered.outputs()[0].name, "loss");
  EXPECT_EQ(lowered.outputs()[1].name, "layer.weight_grad");
  EXPECT_EQ(lowered.inputs().size(), 2U);
  const Tensors feeds = test::random_feeds(lowered);
  EXPECT_TRUE(run_graph(lowered, feeds).at("layer.weight_grad").identical(feeds.at("x")));
}

TEST(LowerMicrosoftOperators, AShapeThatIsNotKnownIsAnErrorThatNamesTheNode) {
  Example e;
  const ValueId dy = e.input("dy", {2, 3});
  const ValueId starts = e.input("starts", {1}, DataType::kInt64);
  e.output("dx", e.microsoft("SliceGrad",
                             {dy, e.constant({5, 3}), starts, e.constant({2}), e.constant({0})},
                             {{kDouble, {5, 3}}})[0]);
  try {
    lower_microsoft_operators(e.graph);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("SliceGrad"));
    EXPECT_THAT(error.what(), testing::HasSubstr("starts"));
  }
}

}  // namespace
}  // namespace autosp::transforms

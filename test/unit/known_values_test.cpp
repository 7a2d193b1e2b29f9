// What is known about values and names before a graph runs.
#include "ir/known_values.h"

#include <gtest/gtest.h>

#include "ir/builder.h"
#include "ir/gradient_names.h"
#include "transforms/canonicalize/constants.h"

namespace autosp::ir {
namespace {

constexpr auto kFloat = DataType::kFloat32;

TEST(IsZero, WhatMovesRepeatsOrPicksZerosIsZero) {
  Graph graph;
  Builder build(graph);
  const ValueId zeros = build.zeros({kFloat, {4, 6}});
  EXPECT_TRUE(is_zero(graph, build.constant(Tensor({kFloat, {2, 3}}))));
  EXPECT_TRUE(is_zero(graph, zeros));
  EXPECT_TRUE(is_zero(graph, build.identity(zeros)));
  EXPECT_TRUE(is_zero(graph, build.unary("Neg", zeros)));
  EXPECT_TRUE(is_zero(graph, build.cast(zeros, DataType::kInt64)));
  EXPECT_TRUE(is_zero(graph, build.transpose(zeros, {1, 0})));
  EXPECT_TRUE(is_zero(graph, build.slice(zeros, 1, 2, 4)));
  EXPECT_TRUE(is_zero(graph, build.gather(zeros, build.int64s({1, 1}), 0)));
  EXPECT_TRUE(is_zero(graph, build.expand(build.unsqueeze(zeros, {0}), {3, 4, 6})));
  EXPECT_TRUE(is_zero(graph, build.squeeze(build.reshape(zeros, {1, 24}), {0})));
  EXPECT_TRUE(is_zero(graph, build.node("Flatten", {zeros}, {kFloat, {4, 6}})));
  EXPECT_TRUE(is_zero(graph, build.pad(zeros, {1, 0}, {0, 1})));
}

TEST(IsZero, OtherValuesAreNotKnownToBe) {
  Graph graph;
  Builder build(graph);
  const ValueId zeros = build.zeros({kFloat, {4}});
  const ValueId x = graph.add_input("x", {kFloat, {4}});
  const ValueId one = build.scalar(kFloat, 1);
  const auto padded = [&](ValueId fill) {
    return build.node("Pad", {zeros, build.int64s({1, 1}), fill}, {kFloat, {6}});
  };
  EXPECT_TRUE(is_zero(graph, padded(build.scalar(kFloat, 0))));
  EXPECT_FALSE(is_zero(graph, padded(one)));
  EXPECT_FALSE(is_zero(graph, padded(graph.add_input("fill", {kFloat, {}}))));
  EXPECT_FALSE(is_zero(graph, x));
  EXPECT_FALSE(is_zero(graph, one));
  EXPECT_FALSE(is_zero(graph, build.unary("Exp", zeros)));
  EXPECT_FALSE(is_zero(graph, build.identity(x)));
  EXPECT_FALSE(is_zero(graph, ValueId()));
}

TEST(ParameterOfGradient, EveryConventionKeepsItsInitializerFromBeingFolded) {
  for (const std::string name : {"w.grad", "w_grad", "w.gradient", "w_gradient", "w/grad", "w@grad",
                                 "grad_w", "adj_w", "d_w", "grad.w", "gradient_w"}) {
    SCOPED_TRACE(name);
    Graph graph;
    const ValueId w = graph.add_named_constant("w", Tensor::filled({kFloat, {2}}, 1));
    const ValueId other = graph.add_named_constant("v", Tensor::filled({kFloat, {2}}, 2));
    graph.add_output(name, Builder(graph).binary("Add", w, other));
    EXPECT_EQ(parameter_of_gradient(graph, name), w);
    const std::vector<bool> parameter = transforms::find_parameter_constants(graph);
    EXPECT_TRUE(parameter[w.index()]);
    EXPECT_FALSE(parameter[other.index()]);
  }
}

TEST(ParameterOfGradient, DeclaredParametersNeedNoName) {
  Graph graph;
  const ValueId w = graph.add_named_constant("w", Tensor::filled({kFloat, {}}, 1));
  graph.declared_parameters = {"w", "none of the graph"};
  graph.add_output("g", Builder(graph).identity(w));
  EXPECT_TRUE(transforms::find_parameter_constants(graph)[w.index()]);
}

TEST(ParameterOfGradient, ComputedValuesAndOtherNamesAreNone) {
  Graph graph;
  Builder build(graph);
  const ValueId x = graph.add_input("x", {kFloat, {2}});
  build.unary("Exp", x, "h");
  EXPECT_EQ(parameter_of_gradient(graph, "x_grad"), x);
  EXPECT_EQ(parameter_of_gradient(graph, "h_grad"), std::nullopt);
  EXPECT_EQ(parameter_of_gradient(graph, "x"), std::nullopt);
  EXPECT_EQ(parameter_of_gradient(graph, "loss"), std::nullopt);
}

}  // namespace
}  // namespace autosp::ir

#include "reference/draws.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "support/pass_example.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/decompose_draws.h"

namespace autosp::transforms {
namespace {

using ir::DataType;
using ir::Graph;
using ir::Tensor;
using reference::DrawKey;
using reference::UniformDraws;
using test::apply;
using test::Example;
using test::random_feeds;
using test::run_graph;

constexpr DataType kFloat = DataType::kFloat32;

size_t count_nodes(const Graph& graph, std::string_view op) {
  return static_cast<size_t>(std::ranges::count(graph.nodes(), op, &ir::Node::op));
}

std::vector<float> numbers(const UniformDraws& draws, uint64_t first, int64_t count) {
  std::vector<float> result(static_cast<size_t>(count));
  draws.for_each(first, count,
                 [&](int64_t k, float value) { result[static_cast<size_t>(k)] = value; });
  return result;
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double correlation(const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<double> products;
  for (size_t k = 0; k < a.size(); ++k) products.push_back(12 * (a[k] - 0.5) * (b[k] - 0.5));
  return mean(products);
}

TEST(UniformDraws, ARunIsWhatItsNumbersAreOneByOne) {
  const UniformDraws draws({.seed = 5, .stream = 9}, 3);
  for (const uint64_t first : {0ULL, 1ULL, 2ULL, 3ULL, 7ULL, (1ULL << 34U) - 2}) {
    const auto run = numbers(draws, first, 11);
    for (size_t k = 0; k < run.size(); ++k) EXPECT_EQ(run[k], draws.at(first + k)) << first;
  }
}

// 100000 numbers: bounds of six standard deviations, so that chance never fails the test.
TEST(UniformDraws, AreSpreadEvenly) {
  const auto drawn = numbers(UniformDraws({.seed = 1, .stream = 2}, 0), 0, 100000);
  std::vector<double> values(drawn.begin(), drawn.end());
  EXPECT_NEAR(mean(values), 0.5, 6 * std::sqrt(1.0 / 12 / 1e5));
  std::vector<int> tenths(10);
  for (double& value : values) {
    ASSERT_TRUE(value >= 0 && value < 1);
    ++tenths[static_cast<size_t>(value * 10)];
    value = (value - 0.5) * (value - 0.5);
  }
  EXPECT_NEAR(mean(values), 1.0 / 12, 6 * std::sqrt(1.0 / 180 / 1e5));
  for (int count : tenths) EXPECT_NEAR(count, 10000, 6 * std::sqrt(1e5 * 0.1 * 0.9));
}

TEST(UniformDraws, SeedStreamStepAndPlaceAllCount) {
  const DrawKey key{.seed = 1, .stream = 2};
  const auto drawn = numbers(UniformDraws(key, 0), 0, 10000);
  const UniformDraws others[] = {{{.seed = 2, .stream = 2}, 0},
                                 {{.seed = 1 + (1ULL << 32U), .stream = 2}, 0},
                                 {{.seed = 1, .stream = 3}, 0},
                                 {reference::second_stream(key), 0},
                                 {key, 1}};
  for (const UniformDraws& other : others) {
    EXPECT_LT(std::abs(correlation(drawn, numbers(other, 0, 10000))), 0.06);
  }
  for (const uint64_t shift : {1ULL, 4ULL, 1ULL << 32U, 1ULL << 34U}) {
    EXPECT_LT(std::abs(correlation(drawn, numbers(UniformDraws(key, 0), shift, 10000))), 0.06);
  }
}

TEST(DrawKey, ASeedOfTheOperatorsOwnCountsAloneElseItsNameUnderTheRunsSeed) {
  const auto key = [](const char* op, const char* name, ir::Attributes attributes, uint64_t seed) {
    ir::Node node{.name = name, .op = op, .attributes = std::move(attributes)};
    const DrawKey found = reference::draw_key(node, seed);
    return std::pair(found.seed, found.stream);
  };
  EXPECT_EQ(key("RandomUniform", "a", {{"seed", 7.0F}}, 1),
            key("Dropout", "b", {{"seed", int64_t{7}}}, 2));
  EXPECT_NE(key("RandomUniform", "a", {{"seed", 7.0F}}, 1),
            key("RandomUniform", "a", {{"seed", 7.5F}}, 1));
  const auto dropout = [&](int64_t own) { return key("Dropout", "b", {{"seed", own}}, 2); };
  EXPECT_EQ(key("RandomUniform", "a", {{"seed", 0x1p30F}}, 1), dropout(int64_t{1} << 30U));
  // Floats of these are alike.
  for (const int64_t own : {int64_t{123456789}, int64_t{-123456789}, int64_t{1} << 62U,
                            std::numeric_limits<int64_t>::max() - 1}) {
    EXPECT_NE(dropout(own), dropout(own + 1)) << own;
  }
  EXPECT_EQ(key("RandomUniform", "a", {}, 1), key("Dropout", "a", {}, 1));
  EXPECT_NE(key("RandomUniform", "a", {}, 1), key("RandomUniform", "b", {}, 1));
  EXPECT_NE(key("RandomUniform", "a", {}, 1), key("RandomUniform", "a", {}, 2));
}

TEST(DecomposeRandom, DropoutDropsWhatTheOperatorDrops) {
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
    const Graph after = apply(e.graph, decompose_random);
    EXPECT_EQ(count_nodes(after, "Dropout"), 0U);
    EXPECT_EQ(count_nodes(after, "RandomUniform"), 1U);
  }
}

TEST(DecomposeRandom, DropoutThatMayNotTrainAsksAtRunTime) {
  for (const int64_t trains : {0, 1}) {
    Example e;
    const ValueId training = e.input("training", {}, DataType::kBool);
    const auto results =
        e.build.node("Dropout", {e.input("x", {50}), e.build.scalar(kFloat, 0.25), training},
                     {{kFloat, {50}}, {DataType::kBool, {50}}});
    e.output(results[0]);
    e.output(results[1]);
    test::Tensors feeds = random_feeds(e.graph);
    feeds["training"] = Tensor::scalar(DataType::kBool, static_cast<double>(trains));
    const test::Tensors got = run_graph(decompose_random(e.graph), feeds);
    test::expect_close(got, run_graph(e.graph, feeds));
    const auto mask = got.at("out1").values<bool>();
    EXPECT_EQ(std::ranges::count(mask, true) == 50, trains == 0);
  }
}

TEST(DecomposeRandom, OperatorsDrawWhatTheirKernelsDraw) {
  for (const DataType dtype : {kFloat, DataType::kFloat64, DataType::kFloat16}) {
    Example e;
    const ir::Type type{dtype, {30, 7}};
    const ValueId like = e.graph.add_input("like", type);
    const auto shape = std::vector<int64_t>(type.shape);
    const auto code = static_cast<int64_t>(dtype);
    e.output(e.build.node("RandomUniform", {}, type, {{"shape", shape}, {"dtype", code}}));
    e.output(e.build.node("RandomUniformLike", {like}, type, {{"low", -3.0F}, {"high", 5.0F}}));
    e.output(e.build.node("RandomNormal", {}, type, {{"shape", shape}, {"dtype", code}}));
    e.output(e.build.node("RandomNormalLike", {like}, type,
                          {{"mean", 4.0F}, {"scale", 0.5F}, {"seed", 3.0F}}));
    e.output(e.build.node("Bernoulli", {e.build.unary("Sigmoid", like)}, type));
    const Graph after = decompose_random(e.graph);
    EXPECT_EQ(count_nodes(after, "RandomUniform"), 7U);
    // Of a template the shape matters, which is known: the Sigmoid alone reads it.
    EXPECT_EQ(consumers(after)[after.inputs()[0].index()].size(), 1U);
    for (const ir::Node& node : after.nodes()) EXPECT_FALSE(node.op.starts_with("RandomNormal"));
    const test::Tensors feeds = random_feeds(e.graph);
    // In float16 the draw is cut off where the kernel rounds it.
    const double tolerance = dtype == DataType::kFloat16 ? 2e-3 : 1e-5;
    test::expect_close(run_graph(after, feeds), run_graph(e.graph, feeds), tolerance);
  }
}

TEST(DecomposeRandom, NormalNumbersHaveMeanAndDeviation) {
  Example e;
  e.output(e.build.node("RandomNormal", {}, {kFloat, {50000}},
                        {{"shape", std::vector<int64_t>{50000}}, {"mean", 2.0F}, {"scale", 3.0F}}));
  const Tensor drawn = run_graph(decompose_random(e.graph), {}).at("out0");
  std::vector<double> values;
  for (float value : drawn.values<float>()) values.push_back((value - 2) / 3);
  const double sigma = 1 / std::sqrt(50000.0);
  EXPECT_NEAR(mean(values), 0, 6 * sigma);
  std::vector<double> squares;
  std::vector<double> fourths;
  for (double value : values) {
    squares.push_back(value * value);
    fourths.push_back(squares.back() * squares.back());
  }
  EXPECT_NEAR(mean(squares), 1, 6 * std::sqrt(2.0) * sigma);
  EXPECT_NEAR(mean(fourths), 3, 6 * std::sqrt(96.0) * sigma);
}

// One number in 2048 of these would round to 1 itself.
TEST(DecomposeRandom, UniformNumbersOfSixteenBitsStayBelowOne) {
  for (const DataType dtype : {DataType::kFloat16, DataType::kBFloat16}) {
    Example e;
    e.output(e.build.node(
        "RandomUniform", {}, {dtype, {20000}},
        {{"shape", std::vector<int64_t>{20000}}, {"dtype", static_cast<int64_t>(dtype)}}));
    const Tensor drawn = run_graph(decompose_random(e.graph), {}).at("out0");
    for (int64_t k = 0; k < drawn.num_elements(); ++k) ASSERT_LT(drawn.value_as_double(k), 1);
  }
}

Graph dropout_with_step() {
  Example e;
  e.output(e.build.node(
      "Dropout",
      {e.input("x", {4, 50}), e.build.scalar(kFloat, 0.5), e.build.scalar(DataType::kBool, 1)},
      {kFloat, {4, 50}}));
  return decompose_random(e.graph, {.seed = 12, .step_input = "step"});
}

TEST(DecomposeRandom, TheStepIsAnInputThatChangesWhatIsDropped) {
  const Graph graph = dropout_with_step();
  ASSERT_TRUE(find_step_input(graph).has_value());
  EXPECT_EQ(graph.name_of(*find_step_input(graph)), "step");
  test::Tensors feeds = random_feeds(graph);
  const auto at = [&](int64_t step) {
    feeds["step"] = Tensor::from_values<int64_t>({}, std::vector<int64_t>{step});
    return run_graph(graph, feeds).at("out0");
  };
  EXPECT_TRUE(at(3).identical(at(3)));
  EXPECT_FALSE(at(3).identical(at(4)));
}

TEST(DecomposeDraws, StandardOperatorsGiveTheSameBits) {
  const Graph graph = dropout_with_step();
  const Graph standard = decompose_draws(graph);
  EXPECT_TRUE(
      std::ranges::all_of(standard.nodes(), [](const auto& n) { return n.domain.empty(); }));
  test::Tensors feeds = random_feeds(graph);
  for (const int64_t step : {int64_t{0}, int64_t{77}, (int64_t{1} << 33U) + 5, int64_t{-1}}) {
    feeds["step"] = Tensor::from_values<int64_t>({}, std::vector<int64_t>{step});
    EXPECT_TRUE(
        run_graph(standard, feeds).at("out0").identical(run_graph(graph, feeds).at("out0")));
  }
}

// Boxes of an odd tensor, and of one with more than 2^34 elements, whose blocks need two words.
TEST(DecomposeDraws, ABoxIsDrawnAsPartOfTheWhole) {
  using Ints = std::vector<int64_t>;
  struct Box {
    Ints whole, begin, extent;
  };
  for (const Box& box : {Box{{5, 7, 6}, {1, 2, 3}, {3, 4, 2}}, Box{{5, 7, 6}, {2, 0, 0}, {2, 7, 6}},
                         Box{{1 << 20, 1 << 20}, {(1 << 20) - 2, 5}, {2, 9}}, Box{{}, {}, {}},
                         Box{{4, 6}, {1, 3}, {3, 0}}}) {
    Graph graph;
    ir::Builder build(graph);
    const ir::Attributes attributes = {{"seed", int64_t{3}},  {"stream", int64_t{4}},
                                       {"shape", box.extent}, {"whole", box.whole},
                                       {"begin", box.begin},  {"extent", box.extent}};
    graph.add_output(
        "y", build.node("RandomUniform", std::vector<ValueId>{}, ir::Type{kFloat, box.extent},
                        attributes, std::string(ir::kAutospDomain)));
    const Tensor got = run_graph(graph, {}).at("y");
    const UniformDraws draws({.seed = 3, .stream = 4}, 0);
    Ints at(box.whole.size(), 0);
    for (int64_t k = 0; k < got.num_elements(); ++k) {
      uint64_t number = 0;
      for (size_t d = 0; d < at.size(); ++d) {
        number = number * static_cast<uint64_t>(box.whole[d]) +
                 static_cast<uint64_t>(box.begin[d] + at[d]);
      }
      EXPECT_EQ(got.values<float>()[static_cast<size_t>(k)], draws.at(number));
      for (size_t d = at.size(); d-- > 0 && ++at[d] == box.extent[d];) at[d] = 0;
    }
    EXPECT_TRUE(run_graph(decompose_draws(graph), {}).at("y").identical(got));
  }
}

}  // namespace
}  // namespace autosp::transforms

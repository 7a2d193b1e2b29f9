// What Attention and AttentionGrad mean: their decomposition says the same as their reference
// kernels under every option, and the gradient is that of the forward operator.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "onnx/model.h"
#include "reference/attention_problem.h"
#include "support/operator_cases.h"
#include "transforms/decompose_attention.h"

namespace autosp {
namespace {

using ir::DataType;
using ir::Graph;
using test::OperatorCase;
using test::Tensors;

constexpr unsigned kCases = 300;

bool is_fused(const ir::Node& node) { return node.domain == ir::kAutospDomain; }

class AttentionMeaning : public testing::TestWithParam<std::string> {};

TEST_P(AttentionMeaning, OfTheDecompositionIsThatOfTheKernel) {
  std::set<std::string> seen;
  for (unsigned seed = 0; seed < kCases && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    const OperatorCase drawn = test::draw_operator_case(GetParam(), seed);
    const Graph plain = transforms::decompose_attention(drawn.graph);
    EXPECT_TRUE(std::ranges::none_of(plain.nodes(), is_fused));
    test::expect_close_or_nan(test::run_graph(plain, drawn.feeds),
                              test::run_graph(drawn.graph, drawn.feeds));
    seen.insert(drawn.graph.nodes()[0].attributes.get_string("dead_rows", "none"));
  }
  EXPECT_EQ(seen.size(), 5U);
}

// The body of a function has the node's operands and results, whatever is absent in between.
TEST_P(AttentionMeaning, OfTheFunctionBodyIsThatOfTheKernel) {
  for (unsigned seed = 0; seed < kCases && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    const OperatorCase drawn = test::draw_operator_case(GetParam(), seed);
    const ir::Node& node = drawn.graph.nodes()[0];  // forward
    const auto body = transforms::attention_body(drawn.graph, node);
    ASSERT_TRUE(body.has_value());
    Tensors feeds;
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      if (!node.inputs[k]) continue;
      feeds[fmt::format("x{}", k)] = drawn.feeds.at(drawn.graph.name_of(node.inputs[k]));
    }
    ASSERT_EQ(body->inputs().size(), feeds.size());
    Graph whole = drawn.graph;
    whole.add_output("output", node.outputs[0]);
    const Tensors got = test::run_graph(*body, feeds);
    const Tensors want = test::run_graph(whole, drawn.feeds);
    test::expect_close_or_nan({{"output", got.at("y0")}}, {{"output", want.at("output")}});
  }
}

INSTANTIATE_TEST_SUITE_P(Operators, AttentionMeaning,
                         testing::Values("autosp::Attention", "autosp::AttentionGrad"),
                         [](const auto& row) { return row.param.substr(8); });

ir::Tensor converted(const ir::Tensor& tensor, DataType to) {
  if (!ir::is_floating(tensor.dtype())) return tensor;
  ir::Tensor result({to, tensor.shape()});
  const size_t size = element_size(to);
  for (int64_t k = 0; k < tensor.num_elements(); ++k) {
    const ir::Tensor one = ir::Tensor::scalar(to, tensor.value_as_double(k));
    std::ranges::copy(one.bytes(), result.mutable_bytes() + static_cast<size_t>(k) * size);
  }
  return result;
}

// A case of AttentionGrad in another element type; "output" is that of the forward operator. A row
// whose weights do not follow from its scores has no gradient to its scores.
OperatorCase converted_case(unsigned seed, DataType to) {
  const OperatorCase from = test::draw_operator_case("autosp::AttentionGrad", seed);
  OperatorCase result;
  std::vector<ValueId> map(from.graph.values().size());
  for (ValueId id : from.graph.inputs()) {
    const std::string& name = from.graph.name_of(id);
    result.feeds[name] = converted(from.feeds.at(name), to);
    map[id.index()] = result.graph.add_input(name, result.feeds[name].type());
  }
  for (const ir::Node& node : from.graph.nodes()) {
    ir::Node copy = node;
    for (ValueId& input : copy.inputs) input = input ? map[input.index()] : input;
    const bool unmasked = node.attributes.get_string("dead_rows", "none") == "unmasked";
    copy.attributes.set("dead_row_gradient", int64_t{unmasked});
    const auto types = onnx_io::infer_types(result.graph, copy);
    result.node = result.graph.add_node(copy.op, copy.inputs, types, copy.attributes, copy.domain);
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (node.outputs[k]) map[node.outputs[k].index()] = result.graph.node(result.node).outputs[k];
    }
  }
  result.graph.add_output("output", result.graph.nodes()[0].outputs[0]);
  for (const ir::Output& output : from.graph.outputs()) {
    result.graph.add_output(output.name, map[output.value.index()]);
  }
  return result;
}

double inner_product(const ir::Tensor& a, const ir::Tensor& b) {
  double sum = 0;
  for (int64_t k = 0; k < a.num_elements(); ++k) {
    sum += a.value_as_double(k) * b.value_as_double(k);
  }
  return sum;
}

// The derivative of <output_gradient, output> along a direction, by central differences.
TEST(AttentionGradient, IsThatOfFiniteDifferences) {
  int checked = 0;
  for (unsigned seed = 0; seed < kCases && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    const OperatorCase c = converted_case(seed, DataType::kFloat64);
    const ir::Node& grad = c.graph.node(c.node);
    if (grad.attributes.get_string("dead_rows", "none") == "nan") continue;
    const Tensors results = test::run_graph(c.graph, c.feeds);
    const std::string seed_name = c.graph.name_of(grad.inputs[0]);
    const auto loss = [&](const Tensors& feeds) {
      return inner_product(c.feeds.at(seed_name), test::run_graph(c.graph, feeds).at("output"));
    };
    const std::vector<std::pair<size_t, size_t>> pairs = {{1, 0}, {2, 1}, {3, 2}, {7, 3}, {13, 4}};
    for (const auto& [operand, result] : pairs) {
      if (!grad.output(result)) continue;
      const std::string& name = c.graph.name_of(grad.inputs[operand]);
      const ir::Tensor gradient = results.at(fmt::format("y{}", result));
      constexpr double kStep = 1e-5;
      Tensors up = c.feeds;
      Tensors down = c.feeds;
      ir::Tensor direction(gradient.type());
      up[name] = ir::Tensor(gradient.type());
      down[name] = ir::Tensor(gradient.type());
      for (int64_t k = 0; k < gradient.num_elements(); ++k) {
        const auto at = static_cast<size_t>(k);
        const double along = std::cos(static_cast<double>(k * 7 + seed));
        const double value = c.feeds.at(name).value_as_double(k);
        direction.mutable_values<double>()[at] = along;
        up[name].mutable_values<double>()[at] = value + kStep * along;
        down[name].mutable_values<double>()[at] = value - kStep * along;
      }
      const double want = (loss(up) - loss(down)) / (2 * kStep);
      EXPECT_NEAR(inner_product(gradient, direction), want, 1e-7 * (1 + std::abs(want)))
          << "result " << result;
      ++checked;
    }
  }
  EXPECT_GT(checked, 500);
}

// 16-bit operands are computed with in float32.
TEST(AttentionMeaningOf16Bits, IsTheSame) {
  for (const DataType type : {DataType::kBFloat16, DataType::kFloat16}) {
    for (unsigned seed = 0; seed < 60 && !testing::Test::HasFailure(); ++seed) {
      SCOPED_TRACE(seed);
      const OperatorCase c = converted_case(seed, type);
      test::expect_close_or_nan(test::run_graph(transforms::decompose_attention(c.graph), c.feeds),
                                test::run_graph(c.graph, c.feeds), 0.02);
    }
  }
}

// Masks that see exactly what the row's definition says.
TEST(AttentionMask, DeadRowsAreThoseWithoutAVisibleKey) {
  const std::vector<int64_t> begin = {0, 2, 3, -5};
  const std::vector<int64_t> end = {1, 2, 9, -1};
  const bool keys[] = {true, true, false, false};
  reference::AttentionMask mask{.begin = begin.data(), .end = end.data(), .num_keys = 4};
  EXPECT_FALSE(mask.is_dead(0, 0));
  EXPECT_TRUE(mask.is_dead(0, 1));
  EXPECT_FALSE(mask.is_dead(0, 2));
  EXPECT_TRUE(mask.is_dead(0, 3));
  mask.key = keys;
  EXPECT_TRUE(mask.is_dead(0, 2));
}

}  // namespace
}  // namespace autosp

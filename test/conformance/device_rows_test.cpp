// Kernels that give a row to a block of threads, on rows longer than a block and no multiple of it.
#include <gtest/gtest.h>

#include "executor/run.h"
#include "ir/builder.h"
#include "support/devices.h"
#include "support/run_graph.h"

namespace autosp::executor {
namespace {

using ir::DataType;
using ir::Graph;
using ir::Tensor;
using ir::Type;

constexpr int64_t kLong = 300;

Type floats(ir::Shape shape) { return {DataType::kFloat32, std::move(shape)}; }

void add_rows(Graph& graph) {
  ir::Builder build(graph);
  const ValueId wide = graph.add_input("wide", floats({3, kLong}));
  const ValueId tall = graph.add_input("tall", floats({kLong, 3}));
  for (const char* op : {"Softmax", "LogSoftmax"}) {
    graph.add_output(std::string(op) + " of rows", build.softmax(op, wide, 1));
    graph.add_output(std::string(op) + " of columns", build.softmax(op, tall, 0));
  }
  for (const char* op : {"ReduceSum", "ReduceMax", "ReduceMean", "ReduceMin"}) {
    graph.add_output(std::string(op) + " of rows", build.reduce(op, wide, {1}, true));
    graph.add_output(std::string(op) + " of columns", build.reduce(op, tall, {0}, true));
    graph.add_output(std::string(op) + " of all", build.reduce(op, tall, {0, 1}, false));
  }
  const ValueId scale = graph.add_input("scale", floats({kLong}));
  const ValueId bias = graph.add_input("bias", floats({kLong}));
  const NodeId norm =
      graph.add_node("LayerNormalization", {wide, scale, bias},
                     {floats({3, kLong}), floats({3, 1}), floats({3, 1})}, {{"axis", int64_t{-1}}});
  for (size_t k = 0; k < 3; ++k) {
    graph.add_output(fmt::format("norm {}", k), graph.node(norm).outputs[k]);
  }
}

// Grouped queries, keys up to the query's own and a few more, a bias, and the gradient.
void add_attention(Graph& graph, bool with_bias) {
  constexpr int64_t kQueries = 150;
  constexpr int64_t kWidth = 33;
  constexpr int64_t kValueWidth = 140;  // wider than a block
  const std::string domain(ir::kAutospDomain);
  const std::string suffix = with_bias ? " with bias" : "";
  const auto input = [&](const char* name, ir::Shape shape) {
    return graph.add_input(name + suffix, floats(std::move(shape)));
  };
  std::vector<int64_t> ends(kQueries);
  for (size_t i = 0; i < ends.size(); ++i) ends[i] = static_cast<int64_t>(2 * i) + 1;
  const ValueId end = graph.add_constant(
      Tensor::from_values<int64_t>({1, kQueries}, std::span(std::as_const(ends))));
  std::vector<ValueId> operands = {input("query", {1, 4, kQueries, kWidth}),
                                   input("key", {1, 2, kLong, kWidth}),
                                   input("value", {1, 2, kLong, kValueWidth})};
  const std::vector<ValueId> optional = {with_bias ? input("biases", {1, 4, 1, kLong}) : ValueId(),
                                         ValueId(), end};
  const ir::Attributes attributes = {{"scale", 0.3F}};
  const Type output = floats({1, 4, kQueries, kValueWidth});
  const Type rows = floats({1, 4, kQueries});
  std::vector<ValueId> forward = operands;
  forward.insert(forward.end(), optional.begin(), optional.end());
  const NodeId attention =
      graph.add_node("Attention", forward, {output, rows, rows}, attributes, domain);
  const std::vector<ValueId> results = graph.node(attention).outputs;
  for (size_t k = 0; k < 3; ++k) graph.add_output(fmt::format("{}{}", k, suffix), results[k]);
  std::vector<ValueId> backward = {input("gradient", output.shape)};
  backward.insert(backward.end(), operands.begin(), operands.end());
  backward.insert(backward.end(), results.begin(), results.end());
  backward.insert(backward.end(), optional.begin(), optional.end());
  const NodeId gradient =
      graph.add_node("AttentionGrad", backward,
                     {graph.type(operands[0]), graph.type(operands[1]), graph.type(operands[2])},
                     attributes, domain);
  for (size_t k = 0; k < 3; ++k) {
    graph.add_output(fmt::format("gradient {}{}", k, suffix), graph.node(gradient).outputs[k]);
  }
}

class DeviceRows : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    found_ = test::find_device(GetParam());
    if (found_.backend == nullptr) GTEST_SKIP() << found_.reason;
  }
  void check(Graph graph, double tolerance) {
    const auto shared = std::make_shared<const Graph>(std::move(graph));
    const Arrays feeds = test::random_feeds(*shared);
    const RunResult result =
        run_in_threads({shared}, {feeds}, {.threads_per_rank = 1, .backend = found_.backend});
    test::expect_close(result.ranks[0].outputs, test::run_graph(*shared, feeds), tolerance);
    EXPECT_TRUE(result.ranks[0].notices.empty()) << result.ranks[0].notices[0];
  }

 private:
  test::FoundDevice found_;
};

TEST_P(DeviceRows, ReductionsAndNorms) {
  Graph graph;
  add_rows(graph);
  check(std::move(graph), 2e-5);
}

TEST_P(DeviceRows, Attention) {
  for (const bool with_bias : {false, true}) {
    Graph graph;
    add_attention(graph, with_bias);
    check(std::move(graph), 5e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, DeviceRows, testing::ValuesIn(test::device_names()),
                         [](const auto& parameters) { return parameters.param; });

}  // namespace
}  // namespace autosp::executor

// Optimizers' updates on every device: parameters and states have the bits of the reference
// kernels, at sizes around those of a pack and of a block, for several tensors at once.
#include <gtest/gtest.h>

#include "executor/kernel_table.h"
#include "executor/program.h"
#include "executor/run.h"
#include "ir/operator_traits.h"
#include "support/devices.h"
#include "support/run_graph.h"

namespace autosp::executor {
namespace {

using ir::DataType;
using ir::Graph;
using ir::Tensor;
using ir::Type;

struct Optimizer {
  const char* op;
  int states;
  ir::Attributes attributes;
};

std::vector<Optimizer> optimizers() {
  return {{"Momentum",
           1,
           {{"alpha", 0.9F},
            {"beta", 0.7F},
            {"norm_coefficient", 0.01F},
            {"mode", std::string("standard")}}},
          {"Momentum",
           1,
           {{"alpha", 0.9F},
            {"beta", 0.7F},
            {"norm_coefficient", 0.0F},
            {"mode", std::string("nesterov")}}},
          {"Adagrad", 1, {{"decay_factor", 0.1F}, {"norm_coefficient", 0.01F}}},
          {"Adam", 2, {}},  // ONNX's own settings
          {"Adam",
           2,
           {{"alpha", 0.95F},
            {"beta", 0.85F},
            {"epsilon", 1e-2F},
            {"norm_coefficient", 0.01F},
            {"norm_coefficient_post", 0.02F}}}};
}

const std::vector<ir::Shape> kShapes = {{}, {0}, {3}, {4}, {5, 7}, {2047}, {2048}, {2, 2049}};

// One node for tensors of all shapes.
std::shared_ptr<const Graph> graph_of(const Optimizer& optimizer, DataType rate, DataType type) {
  auto graph = std::make_shared<Graph>();
  std::vector<ValueId> inputs = {graph->add_input("rate", {rate, {}}),
                                 graph->add_input("count", {DataType::kInt64, {}})};
  for (int kind = 0; kind < 2 + optimizer.states; ++kind) {
    for (size_t k = 0; k < kShapes.size(); ++k) {
      inputs.push_back(graph->add_input(fmt::format("{} of {}", kind, k), {type, kShapes[k]}));
    }
  }
  std::vector<Type> results;
  for (int kind = 0; kind < 1 + optimizer.states; ++kind) {
    for (const ir::Shape& shape : kShapes) results.push_back({type, shape});
  }
  const NodeId node = graph->add_node(optimizer.op, inputs, results, optimizer.attributes,
                                      std::string(ir::kTrainingDomain));
  for (size_t k = 0; k < results.size(); ++k) {
    graph->add_output(fmt::format("result {}", k), graph->node(node).outputs[k]);
  }
  return graph;
}

// States are squares, or might be.
Arrays feeds_of(const Graph& graph, double rate, int64_t count) {
  Arrays feeds = test::random_feeds(graph);
  for (auto& [name, tensor] : feeds) {
    if (name.starts_with("2") || name.starts_with("3")) {
      Tensor squares(tensor.type());
      for (int64_t k = 0; k < tensor.num_elements(); ++k) {
        const double value = tensor.value_as_double(k);
        const Tensor square = Tensor::scalar(tensor.dtype(), value * value);
        std::ranges::copy(square.bytes(),
                          squares.mutable_bytes() + static_cast<size_t>(k) * square.bytes().size());
      }
      tensor = squares;
    }
  }
  feeds["rate"] = Tensor::scalar(feeds.at("rate").dtype(), rate);
  feeds["count"] = Tensor::scalar(DataType::kInt64, static_cast<double>(count));
  return feeds;
}

class DeviceOptimizers : public testing::TestWithParam<std::string> {};

TEST_P(DeviceOptimizers, GiveTheReferencesBits) {
  const test::FoundDevice found = test::find_device(GetParam());
  if (found.backend == nullptr) GTEST_SKIP() << found.reason;
  for (const Optimizer& optimizer : optimizers()) {
    for (const DataType type : {DataType::kFloat32, DataType::kFloat64}) {
      for (const DataType rate : {DataType::kFloat32, DataType::kFloat64}) {
        const auto graph = graph_of(optimizer, rate, type);
        for (const int64_t count : {0, 1, 2, 1000, 1000000}) {
          SCOPED_TRACE(fmt::format("{} of {}, rate {}, count {}", optimizer.op, ir::name_of(type),
                                   ir::name_of(rate), count));
          const Arrays feeds = feeds_of(*graph, 0.0123, count);
          const RunResult result =
              run_in_threads({graph}, {feeds}, {.threads_per_rank = 1, .backend = found.backend});
          EXPECT_TRUE(result.ranks[0].notices.empty()) << result.ranks[0].notices[0];
          for (const auto& [name, want] : test::run_graph(*graph, feeds)) {
            EXPECT_TRUE(result.ranks[0].outputs.at(name).identical(want)) << name;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, DeviceOptimizers, testing::ValuesIn(test::device_names()),
                         [](const auto& parameters) { return parameters.param; });

}  // namespace
}  // namespace autosp::executor

#include "llama_step.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/run_graph.h"

namespace autosp {
namespace {

// Differences of the loss along a random direction of one parameter, against its gradient.
TEST(LlamaStep, GradientsAreDifferencesOfTheLoss) {
  const ir::Graph graph = bench::llama_step({.layers = 2,
                                             .batch = 2,
                                             .sequence = 6,
                                             .hidden = 16,
                                             .heads = 4,
                                             .kv_heads = 2,
                                             .inner = 12,
                                             .vocabulary = 11});
  test::Tensors feeds = test::random_feeds(graph, {.seed = 3, .num_tokens = 11});
  const test::Tensors results = test::run_graph(graph, feeds);
  size_t checked = 0;
  for (const auto& [name, gradient] : results) {
    if (name == "loss") continue;
    const std::string parameter = name.substr(0, name.size() - std::string(".grad").size());
    const ir::Tensor original = feeds.at(parameter);
    double slope = 0;
    auto moved = [&](double step) {
      ir::Tensor tensor(original.type(), original.bytes());
      for (int64_t k = 0; k < tensor.num_elements(); ++k) {
        const double direction = std::sin(static_cast<double>(7 * k + 1));
        tensor.mutable_values<float>()[static_cast<size_t>(k)] +=
            static_cast<float>(step * direction);
      }
      feeds[parameter] = tensor;
      return test::run_graph(graph, feeds).at("loss").value_as_double(0);
    };
    double norm = 0;
    for (int64_t k = 0; k < gradient.num_elements(); ++k) {
      slope += gradient.value_as_double(k) * std::sin(static_cast<double>(7 * k + 1));
      norm += std::abs(gradient.value_as_double(k));
    }
    const double step = 2e-3;
    const double difference = (moved(step) - moved(-step)) / (2 * step);
    feeds[parameter] = original;
    EXPECT_NEAR(difference, slope, 2e-3 + 0.02 * std::abs(slope))
        << name << ", gradient of L1 norm " << norm;
    EXPECT_GT(norm, 0) << name;
    ++checked;
  }
  EXPECT_EQ(checked, 2 * 9 + 3U);
}

}  // namespace
}  // namespace autosp

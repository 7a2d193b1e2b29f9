// Graphs in float64.
#include "transforms/widen_floats.h"

#include <gtest/gtest.h>

#include "ir/builder.h"
#include "support/committed_models.h"
#include "support/run_graph.h"

namespace autosp::transforms {
namespace {

using ir::DataType;

TEST(WidenFloats, EveryResultIsAFloat64) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ValueId x = graph.add_input("x", {DataType::kFloat16, {3}});
  const ValueId third = build.constant(ir::Tensor::filled({DataType::kFloat32, {3}}, 1.0 / 3));
  const ValueId wide = build.binary("Mul", build.cast(x, DataType::kFloat32), third);
  graph.add_output("y", build.cast(wide, DataType::kBFloat16));
  graph.add_output("seen", build.binary("Less", wide, third));
  const ir::Graph result = widen_floats(graph);
  test::Tensors feeds;
  feeds["x"] = ir::Tensor::filled({DataType::kFloat16, {3}}, 0.5);
  const test::Tensors outputs = test::run_graph(result, feeds);
  EXPECT_EQ(outputs.at("y").dtype(), DataType::kFloat64);
  EXPECT_EQ(outputs.at("y").value_as_double(0), 0.5 * static_cast<double>(1.0F / 3));
  EXPECT_EQ(outputs.at("seen").dtype(), DataType::kBool);
}

TEST(WidenFloats, AStepStaysTheSame) {
  for (const char* file : {"gpt2_static.onnx", "bert_onnx_ad.onnx", "llama_onnx_ad.onnx"}) {
    SCOPED_TRACE(file);
    const ir::Graph graph = test::import_committed({.file = file});
    const test::Tensors feeds = test::random_feeds(graph);
    const test::Tensors expected = test::run_graph(graph, feeds);
    for (const auto& [name, tensor] : test::run_graph(widen_floats(graph), feeds)) {
      const ir::Tensor& narrow = expected.at(name);
      ASSERT_EQ(tensor.shape(), narrow.shape());
      double largest = 1e-6;
      for (int64_t k = 0; k < tensor.num_elements(); ++k) {
        largest = std::max(largest, std::fabs(tensor.value_as_double(k)));
      }
      for (int64_t k = 0; k < tensor.num_elements(); ++k) {
        ASSERT_NEAR(tensor.value_as_double(k), narrow.value_as_double(k), 1e-3 * largest) << name;
      }
    }
  }
}

}  // namespace
}  // namespace autosp::transforms

#include "transforms/spmd/thread_tokens.h"

#include <gtest/gtest.h>

#include "ir/builder.h"
#include "ir/operator_traits.h"
#include "onnx/model.h"

namespace autosp::transforms {
namespace {

using ir::DataType;
using ir::Graph;
using ir::Node;

// Two all-reduces that do not depend on each other, and one that nobody reads.
Graph three_collectives() {
  Graph graph;
  ir::Builder build(graph);
  const auto all_reduce = [&](ValueId x, const std::string& name) {
    return build.node("AllReduce", {x}, graph.type(x), {{"group", std::vector<int64_t>{0, 1}}},
                      std::string(ir::kAutospDomain), name);
  };
  const ValueId x = graph.add_input("x", {DataType::kFloat32, {4, 3}});
  const ValueId a = all_reduce(x, "a");
  const ValueId b = all_reduce(build.unary("Exp", x), "b");
  all_reduce(b, "unread");
  graph.add_output("sum", build.binary("Add", a, b));
  return graph;
}

std::vector<Node> collectives(const Graph& graph) {
  std::vector<Node> result;
  for (const Node& node : graph.nodes()) {
    if (ir::is_collective(node)) result.push_back(node);
  }
  return result;
}

TEST(ThreadTokens, EachCollectiveTakesTheTokenOfTheOneBefore) {
  const Graph graph = thread_tokens(three_collectives());
  const auto nodes = collectives(graph);
  ASSERT_EQ(nodes.size(), 3U);
  EXPECT_EQ(nodes[0].name, "a");
  EXPECT_EQ(nodes[0].inputs.size(), 1U);
  for (size_t k = 1; k < nodes.size(); ++k) {
    ASSERT_EQ(nodes[k].inputs.size(), 2U);
    EXPECT_EQ(nodes[k].inputs[1], nodes[k - 1].output(1));
    EXPECT_EQ(graph.type(nodes[k].inputs[1]), (ir::Type{DataType::kInt64, {}}));
  }
  EXPECT_EQ(nodes[2].outputs.size(), 1U);
}

// ONNX's checker takes them, and reading drops them.
TEST(ThreadTokens, ReadingAGraphDropsThem) {
  const Graph before = three_collectives();
  const Graph graph = thread_tokens(before);
  const auto path = std::filesystem::path(testing::TempDir()) / "tokens.onnx";
  onnx_io::export_model(graph, path);
  const Graph read = onnx_io::import_model(path);
  std::filesystem::remove(path);
  ASSERT_EQ(read.nodes().size(), before.nodes().size());
  for (size_t n = 0; n < read.nodes().size(); ++n) {
    const Node& node = read.nodes()[n];
    EXPECT_EQ(node.op, before.nodes()[n].op);
    EXPECT_EQ(node.outputs.size(), 1U);
    EXPECT_EQ(node.inputs.size(), before.nodes()[n].inputs.size());
  }
}

TEST(ThreadTokens, WithoutCollectivesNothingChanges) {
  Graph graph;
  ir::Builder build(graph);
  graph.add_output("y", build.unary("Exp", graph.add_input("x", {DataType::kFloat32, {4}})));
  EXPECT_EQ(thread_tokens(graph).nodes().size(), 1U);
}

}  // namespace
}  // namespace autosp::transforms

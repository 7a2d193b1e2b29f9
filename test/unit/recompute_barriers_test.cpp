#include "transforms/recompute/barriers.h"

#include <gtest/gtest.h>

#include "ir/builder.h"
#include "support/run_graph.h"
#include "transforms/spmd/program.h"

namespace autosp::transforms {
namespace {

using ir::Builder;
using ir::DataType;
using ir::Graph;
using ir::Node;
using ir::Type;

Type floats(ir::Shape shape) { return {DataType::kFloat32, std::move(shape)}; }

// loss = sum(exp(sin(x * w))); sin and exp are computed again for the backward pass.
struct Step {
  Graph graph;
  Builder build{graph};

  explicit Step(ir::Shape x_shape = {4, 3}, ir::Shape w_shape = {3}) {
    const ValueId x = graph.add_input("x", floats(std::move(x_shape)));
    const ValueId w = graph.add_input("w", floats(std::move(w_shape)));
    const ValueId xw = build.binary("Mul", x, w, "xw");
    const ValueId e = build.unary("Exp", build.unary("Sin", xw, "sine"), "e");
    graph.add_output("loss", build.reduce_sum(e, {0, 1}, false, "loss"));
    mark(0, Phase::kForward);
    size_t first = graph.nodes().size();
    const ValueId shallow = build.unary("Neg", w, "shallow");
    const ValueId dy = build.unary("Sqrt", e, "dy");  // stands for a gradient, deep in the graph
    mark(first, Phase::kBackward);
    first = graph.nodes().size();
    const ValueId again = build.binary("Mul", x, w, "xw~recompute");
    const ValueId sine = build.unary("Sin", again, "sine~recompute");
    mark(first, Phase::kRecompute);
    first = graph.nodes().size();
    const ValueId dx = build.binary("Mul", build.binary("Mul", dy, sine), shallow, "dx");
    mark(first, Phase::kBackward);
    graph.add_output("x.grad", dx);
  }

  void mark(size_t first, Phase phase) {
    for (size_t n = first; n < graph.nodes().size(); ++n) {
      graph.set_phase(NodeId(n), name_of(phase));
    }
  }
};

const Node& node_named(const Graph& graph, const std::string& name) {
  return *graph.producer(*graph.find(name));
}

TEST(RecomputeBarriers, AnotherLengthMayDecideWhatIsCheapest) {
  const Step step;
  const auto guards = [&](const Graph* sizes) {
    const Graph guarded = insert_recompute_barriers(step.graph, BarrierForm::kOperator, sizes);
    const Node& again = node_named(guarded, "xw~recompute");
    return guarded.producer(again.inputs[0]) != nullptr;  // a barrier before x
  };
  const Step shorter({3}, {4, 3});
  EXPECT_FALSE(guards(nullptr));
  EXPECT_TRUE(guards(&shorter.graph));
}

TEST(RecomputeBarriers, TheCheapestOperandWaitsForTheDeepestGradient) {
  const Step step;
  const Graph guarded = insert_recompute_barriers(step.graph, BarrierForm::kOperator);
  EXPECT_EQ(guarded.nodes().size(), step.graph.nodes().size() + 1);
  const Node& barrier = node_named(guarded, "w~barrier");
  EXPECT_EQ(barrier.op, "RecomputeBarrier");
  EXPECT_EQ(barrier.domain, ir::kAutospDomain);
  EXPECT_EQ(barrier.phase, name_of(Phase::kRecompute));
  EXPECT_EQ(guarded.name_of(barrier.inputs[0]), "w");
  EXPECT_EQ(guarded.name_of(barrier.inputs[1]), "dy");
  const Node& again = node_named(guarded, "xw~recompute");
  EXPECT_EQ(guarded.name_of(again.inputs[0]), "x");
  EXPECT_EQ(again.inputs[1], barrier.outputs[0]);
  EXPECT_EQ(guarded.name_of(node_named(guarded, "xw").inputs[1]), "w");  // the forward node stays
}

TEST(RecomputeBarriers, TheStandardFormChangesNoResult) {
  const Step step;
  const Graph guarded = insert_recompute_barriers(step.graph, BarrierForm::kStandard);
  EXPECT_EQ(test::count_nodes(guarded, "Where"), 1U);
  EXPECT_EQ(test::count_nodes(guarded, "RecomputeBarrier", ir::kAutospDomain), 0U);
  const auto feeds = test::random_feeds(step.graph);
  test::expect_close(test::run_graph(guarded, feeds), test::run_graph(step.graph, feeds), 0);
}

TEST(RecomputeBarriers, TheBodyIsTheStandardForm) {
  const Step step;
  const Graph guarded = insert_recompute_barriers(step.graph, BarrierForm::kOperator);
  const auto body = barrier_body(guarded, node_named(guarded, "w~barrier"));
  ASSERT_TRUE(body.has_value());
  const test::Tensors feeds = test::random_feeds(*body);
  test::expect_close(test::run_graph(*body, feeds), {{"y0", feeds.at("x0")}}, 0);
  EXPECT_FALSE(barrier_body(guarded, node_named(guarded, "dx")).has_value());
}

TEST(RecomputeBarriers, WithoutRecomputationNothingChanges) {
  Step step;
  step.mark(0, Phase::kBackward);
  const Graph guarded = insert_recompute_barriers(step.graph, BarrierForm::kOperator);
  EXPECT_EQ(guarded.nodes().size(), step.graph.nodes().size());
}

// Shapes and axes are read when a graph is loaded: they have to stay constants.
TEST(RecomputeBarriers, ConstantsThatShapeTheResultAreLeftAlone) {
  Graph graph;
  Builder build(graph);
  const ValueId x = graph.add_input("x", floats({4, 6}));
  const ValueId e = build.unary("Exp", x, "e");
  const ValueId again = build.reshape(x, {2, 12}, "x~recompute");
  graph.set_phase(NodeId(1), name_of(Phase::kRecompute));
  graph.add_output("y", build.binary("Add", build.reshape(e, {2, 12}), again));
  const Graph guarded = insert_recompute_barriers(graph, BarrierForm::kOperator);
  const Node& reshape = node_named(guarded, "x~recompute");
  EXPECT_EQ(guarded.name_of(reshape.inputs[0]), "x~barrier");
  EXPECT_TRUE(guarded.is_constant(reshape.inputs[1]));
}

}  // namespace
}  // namespace autosp::transforms

// What runs on which stream, and what waits for what.
#include "executor/stream_plan.h"

#include <gtest/gtest.h>

#include "executor/device.h"
#include "executor/rank_device.h"
#include "ir/builder.h"
#include "support/emulated_device.h"

namespace autosp::executor {
namespace {

ir::Type floats(int64_t count) { return {ir::DataType::kFloat32, {count}}; }

ValueId all_reduce(ir::Graph& graph, ValueId x, const std::string& name) {
  const NodeId id =
      graph.add_node("AllReduce", {x}, {graph.type(x)}, {{"group", std::vector<int64_t>{0, 1}}},
                     std::string(ir::kAutospDomain), {}, name);
  return graph.node(id).outputs[0];
}

struct Planned {
  Program program;
  std::vector<StreamStep> steps;

  const StreamStep& at(const std::string& op, size_t nth = 0) const {
    return steps[index(op, nth)];
  }
  size_t index(const std::string& op, size_t nth = 0) const {
    const auto& nodes = program.graph().nodes();
    for (size_t k = 0; k < nodes.size(); ++k) {
      if (nodes[k].op == op && nth-- == 0) return k;
    }
    throw std::out_of_range(op);
  }
};

Planned plan(const std::shared_ptr<const ir::Graph>& graph, bool device_exchange = true,
             test::EmulatedOptions options = {}) {
  const test::EmulatedBackend backend(std::move(options));
  const KernelTable kernels = device_kernels(backend);
  Planned result{compile(graph, {.kernels = &kernels}), {}};
  result.steps = plan_streams(result.program, device_exchange);
  return result;
}

// x -> Exp -> AllReduce -> Sqrt, and Sin, Cos beside it.
std::shared_ptr<ir::Graph> exchange_beside_work() {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", floats(64));
  const ValueId sum = all_reduce(*graph, build.unary("Exp", x), "sum");
  const ValueId other = build.unary("Cos", build.unary("Sin", x));
  graph->add_output("y", build.binary("Add", build.unary("Sqrt", sum), other));
  return graph;
}

TEST(StreamPlan, AnExchangeStartsAtItsOperandAndIsAwaitedByItsFirstReader) {
  const Planned p = plan(exchange_beside_work());
  const StreamStep& exchange = p.at("AllReduce");
  EXPECT_TRUE(exchange.exchanges);
  EXPECT_EQ(exchange.waits_for, static_cast<int>(p.index("Exp")));
  EXPECT_TRUE(p.at("Exp").awaited);
  EXPECT_EQ(p.at("Sin").waits_for, -1);
  EXPECT_EQ(p.at("Cos").waits_for, -1);
  EXPECT_EQ(p.at("Sqrt").waits_for, static_cast<int>(p.index("AllReduce")));
  EXPECT_EQ(p.at("Add").waits_for, -1);  // what Sqrt waited for is done
}

TEST(StreamPlan, ThroughTheHostEverythingIsOnOneStream) {
  const Planned p = plan(exchange_beside_work(), false);
  EXPECT_TRUE(p.at("AllReduce").on_host);
  for (const StreamStep& step : p.steps) {
    EXPECT_FALSE(step.exchanges);
    EXPECT_EQ(step.waits_for, -1);
  }
}

// Sin's result takes the place of the exchange's operand, which must have been read.
TEST(StreamPlan, APlaceIsTakenOverWhenTheExchangeIsDoneWithIt) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", floats(64));
  const NodeId gathered = graph->add_node(
      "AllGather", {build.unary("Exp", x)}, {floats(128)},
      {{"group", std::vector<int64_t>{0, 1}}, {"sizes", std::vector<int64_t>{64, 64}}},
      std::string(ir::kAutospDomain), {}, "gathered");
  graph->add_output("a", build.unary("Sin", x));
  graph->add_output("b", graph->node(gathered).outputs[0]);
  const Planned p = plan(graph);
  const auto place = [&](const char* op) {
    return p.program
        .buffers()[static_cast<size_t>(
            p.program.place(p.program.graph().nodes()[p.index(op)].outputs[0]).buffer)]
        .offset;
  };
  ASSERT_EQ(place("Exp"), place("Sin"));
  EXPECT_EQ(p.at("Sin").waits_for, static_cast<int>(p.index("AllGather")));
}

TEST(StreamPlan, OperatorsWithoutAKernelRunOnTheHost) {
  const Planned p = plan(exchange_beside_work(), true, {.missing = {"Cos"}});
  EXPECT_TRUE(p.at("Cos").on_host);
  EXPECT_FALSE(p.at("Sin").on_host);
  EXPECT_FALSE(p.at("AllReduce").on_host);
}

}  // namespace
}  // namespace autosp::executor

// Collectives beside computation: their order, when they must have ended, and what runs then.
#include "executor/overlap.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "executor/collective_queue.h"
#include "executor/run.h"
#include "executor/transport/threads.h"
#include "ir/builder.h"
#include "support/run_graph.h"

namespace autosp::executor {
namespace {

using ir::DataType;
using ir::Graph;
using testing::ElementsAre;
using testing::HasSubstr;

const ir::Type kFloats{DataType::kFloat32, {64, 3}};

ValueId all_reduce(ir::Builder& build, ValueId x, const std::string& name) {
  return build.node("AllReduce", {x}, kFloats, {{"group", std::vector<int64_t>{0, 1}}},
                    std::string(ir::kAutospDomain), name);
}

std::vector<std::string> operators(const Graph& graph) {
  std::vector<std::string> result;
  for (const ir::Node& node : graph.nodes()) {
    result.push_back(node.op == "AllReduce" ? node.name : node.op);
  }
  return result;
}

TEST(Overlap, WhatACollectiveDoesNotNeedRunsBesideIt) {
  Graph graph;
  ir::Builder build(graph);
  const ValueId x = graph.add_input("x", kFloats);
  const ValueId needed = build.unary("Exp", x);
  const ValueId other = build.unary("Sin", x);
  const ValueId also_needed = build.unary("Abs", needed);
  const ValueId sum = all_reduce(build, also_needed, "sum");
  graph.add_output("y", build.binary("Add", sum, other));
  EXPECT_THAT(operators(start_collectives_early(graph)),
              ElementsAre("Exp", "Abs", "sum", "Sin", "Add"));
}

TEST(Overlap, CollectivesStayInTheirOrder) {
  Graph graph;
  ir::Builder build(graph);
  const ValueId x = graph.add_input("x", kFloats);
  const ValueId a = all_reduce(build, build.unary("Exp", x), "a");
  const ValueId b = all_reduce(build, x, "b");  // could begin first of all
  const ValueId c = all_reduce(build, build.unary("Sin", a), "c");
  graph.add_output("y", build.binary("Add", build.binary("Add", b, c), a));
  EXPECT_THAT(operators(start_collectives_early(graph)),
              ElementsAre("Exp", "a", "b", "Sin", "c", "Add", "Add"));
}

// One is under way while what the one before has brought is used; never two.
TEST(Overlap, AParameterIsFetchedWhileTheOneBeforeIsUsed) {
  Graph graph;
  ir::Builder build(graph);
  ValueId x = graph.add_input("x", kFloats);
  for (const char* name : {"first", "second", "third"}) {
    const ValueId shard = graph.add_input(std::string(name) + "_shard", kFloats);
    x = build.unary("Sin", build.binary("Mul", x, all_reduce(build, shard, name)));
  }
  graph.add_output("y", x);
  EXPECT_THAT(operators(start_collectives_early(graph)),
              ElementsAre("first", "Mul", "second", "Sin", "Mul", "third", "Sin", "Mul", "Sin"));
}

// What is sent on needs nothing: begun early, all that a ring passes on would be there at once.
TEST(Overlap, WhatIsSentOnStaysInItsPlace) {
  Graph graph;
  ir::Builder build(graph);
  const ValueId x = graph.add_input("x", kFloats);
  const ValueId first = all_reduce(build, build.unary("Exp", x), "first");
  const ValueId own = build.unary("Sin", x);
  const ValueId second = all_reduce(build, first, "second");
  const ValueId used = build.binary("Add", own, first);
  const ValueId third = all_reduce(build, second, "third");
  graph.add_output("y", build.binary("Add", build.binary("Add", used, second), third));
  EXPECT_THAT(operators(start_collectives_early(graph)),
              ElementsAre("Exp", "first", "Sin", "second", "Add", "third", "Add", "Add"));
}

TEST(Overlap, TheFirstReaderOfALaterOneWaitsForThoseBefore) {
  Graph graph;
  ir::Builder build(graph);
  const ValueId x = graph.add_input("x", kFloats);
  const ValueId unread_for_long = all_reduce(build, x, "a");  // 0
  const ValueId b = all_reduce(build, x, "b");                // 1
  const ValueId view = build.reshape(b, {3, 64});             // 2: moves no bytes
  const ValueId sine = build.unary("Sin", x);                 // 3
  const ValueId read = build.unary("Exp", view);              // 4
  const ValueId late = all_reduce(build, sine, "c");          // 5
  graph.add_output("read", read);
  graph.add_output("a", unread_for_long);
  graph.add_output("late", late);
  const CollectiveDeadlines deadlines = collective_deadlines(graph);
  EXPECT_THAT(deadlines.ended_before, ElementsAre(0, 0, 0, 0, 2, 0));
  EXPECT_THAT(deadlines.waited_for_by, ElementsAre(4, 4, 0, 0, 0, 6));
}

// Operands that a collective is the last to read, while other results look for memory.
std::shared_ptr<const Graph> many_sums() {
  auto graph = std::make_shared<Graph>();
  ir::Builder build(*graph);
  ValueId x = graph->add_input("x", kFloats);
  std::vector<ValueId> sums;
  for (int k = 0; k < 12; ++k) {
    x = build.unary("Sin", x);
    // One is summed in place, and one is free again when it has been gathered.
    sums.push_back(all_reduce(build, build.unary("Exp", x), "sum" + std::to_string(k)));
    const ValueId gathered =
        build.node("AllGather", {build.unary("Tan", x)}, {DataType::kFloat32, {128, 3}},
                   {{"group", std::vector<int64_t>{0, 1}},
                    {"axis", int64_t{0}},
                    {"sizes", std::vector<int64_t>{64, 64}}},
                   std::string(ir::kAutospDomain), "gathered" + std::to_string(k));
    sums.push_back(build.slice(gathered, 0, 32, 96));
    x = build.binary("Mul", build.unary("Cos", x), x);
  }
  for (ValueId sum : sums) x = build.binary("Add", x, sum);
  graph->add_output("y", x);
  return graph;
}

TEST(Overlap, GivesTheSameBits) {
  const auto graph = many_sums();
  const Arrays feeds = test::random_feeds(*graph);
  RunOptions options;
  const RunResult after = run_in_threads({graph, graph}, {feeds, feeds}, options);
  options.compile.overlap = true;
  options.repeat = 3;
  for (const double latency : {0.0, 2e-3}) {
    options.link.latency = latency;
    const RunResult beside = run_in_threads({graph, graph}, {feeds, feeds}, options);
    for (size_t rank = 0; rank < 2; ++rank) {
      EXPECT_TRUE(std::ranges::equal(beside.ranks[rank].outputs.at("y").bytes(),
                                     after.ranks[rank].outputs.at("y").bytes()));
      EXPECT_EQ(beside.ranks[rank].collectives.size(), 24U);
      EXPECT_GT(beside.ranks[rank].exposed_seconds, 0);
    }
  }
}

TEST(Overlap, TracksOfCollectivesAreTheirOwn) {
  const auto graph = many_sums();
  const Arrays feeds = test::random_feeds(*graph);
  RunOptions options;
  options.compile.overlap = true;
  options.trace = true;
  const RunResult result = run_in_threads({graph, graph}, {feeds, feeds}, options);
  EXPECT_EQ(std::ranges::count_if(result.events, &TraceEvent::beside), 48);
  EXPECT_EQ(std::ranges::count(result.events, std::string("AllReduce"), &TraceEvent::category), 24);
}

// A rank fails while one of its collectives is under way.
TEST(Overlap, AFailureIsToldAsWithoutIt) {
  auto graph = std::make_shared<Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", kFloats);
  const ValueId sum = all_reduce(build, x, "sum");
  const ValueId at = graph->add_input("at", {DataType::kInt64, {1}});
  graph->add_output("row", build.node("Gather", {x, at}, {DataType::kFloat32, {1, 3}},
                                      {{"axis", int64_t{0}}}, "", "row"));
  graph->add_output("sum", sum);
  Arrays feeds = test::random_feeds(*graph);
  feeds["at"] = ir::Tensor::from_values<int64_t>({1}, std::vector<int64_t>{1000});
  RunOptions options;
  options.compile.overlap = true;
  options.link.latency = 0.02;
  try {
    run_in_threads({graph, graph}, {feeds, feeds}, options);
    FAIL() << "an index beyond the end";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("1000"));
  }
}

// Nobody else comes: it would wait for as long as it may.
TEST(Overlap, GivingUpEndsACollectiveThatWaits) {
  ThreadWorld world(2, 3600);
  const std::vector<float> x(4);
  std::vector<float> y(4);
  std::jthread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    world.rank(0).give_up(std::make_exception_ptr(Error("it cannot go on")));
  });
  const Collective collective{"sum", "AllReduce", {0, 1}, DataType::kFloat32};
  EXPECT_THROW(world.rank(0).all_reduce(collective, {x.data(), {4}}, {y.data(), {4}}), Interrupted);
  EXPECT_THROW(std::rethrow_exception(world.failure()), Error);
}

TEST(Overlap, NoCollectiveRunsAfterOneThatFailed) {
  CollectiveQueue queue;
  std::vector<int> ran;
  queue.post([&] { ran.push_back(1); });
  queue.wait_for(1);
  queue.post([&] {
    ran.push_back(2);
    throw Error("the second fails");
  });
  queue.post([&] { ran.push_back(3); });
  EXPECT_THROW(queue.wait_for(2), Error);
  EXPECT_THROW(queue.wait_for(3), Error);
  EXPECT_THAT(ran, ElementsAre(1, 2));
}

}  // namespace
}  // namespace autosp::executor

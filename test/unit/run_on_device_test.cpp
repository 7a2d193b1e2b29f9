// What the executor does with a device, on one that keeps records (support/emulated_device.h).
#include "executor/run_on_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "executor/rank_device.h"
#include "executor/run.h"
#include "executor/world.h"
#include "ir/builder.h"
#include "support/emulated_device.h"
#include "support/run_graph.h"

namespace autosp::executor {
namespace {

using ir::Tensor;
using test::EmulatedBackend;
using test::EmulatedOptions;
using testing::Contains;
using testing::HasSubstr;

ir::Type floats(ir::Shape shape) { return {ir::DataType::kFloat32, std::move(shape)}; }

RunOptions on(const std::shared_ptr<Backend>& backend) {
  RunOptions options;
  options.backend = backend;
  return options;
}

// exp(x) @ w + 1, and a constant that is an output itself.
std::shared_ptr<ir::Graph> small_graph() {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", floats({5, 7}));
  const ValueId w = graph->add_input("w", floats({7, 3}));
  const ValueId one = build.scalar(ir::DataType::kFloat32, 1);
  graph->add_output("y", build.binary("Add", build.matmul(build.unary("Exp", x), w), one));
  graph->add_output("x again", build.reshape(x, {35}));
  graph->add_output("one", one);
  return graph;
}

TEST(RunOnDevice, GivesWhatTheReferenceGives) {
  const auto graph = small_graph();
  const auto backend = std::make_shared<EmulatedBackend>();
  const Arrays feeds = test::random_feeds(*graph);
  const RunResult result = run_in_threads({graph}, {feeds}, on(backend));
  test::expect_close(result.ranks[0].outputs, test::run_graph(*graph, feeds));
  EXPECT_EQ(backend->counts().allocations, 1);  // the rank's memory is one allocation
  EXPECT_EQ(backend->counts().live_bytes, 0);
  EXPECT_TRUE(result.ranks[0].notices.empty());
}

TEST(RunOnDevice, AnOperatorWithoutAKernelRunsOnTheHostAndIsNamed) {
  const auto graph = small_graph();
  const auto backend = std::make_shared<EmulatedBackend>(EmulatedOptions{.missing = {"Exp"}});
  const Arrays feeds = test::random_feeds(*graph);
  RunOptions options = on(backend);
  options.trace = true;
  const RunResult result = run_in_threads({graph}, {feeds}, options);
  test::expect_close(result.ranks[0].outputs, test::run_graph(*graph, feeds));
  EXPECT_THAT(result.ranks[0].notices, Contains(HasSubstr("on the host: Exp")));
  std::vector<std::string> categories;
  for (const TraceEvent& event : result.events) categories.push_back(event.category);
  EXPECT_THAT(categories, Contains("Exp (host)"));
  EXPECT_THAT(categories, Contains("MatMul"));
}

TEST(RunOnDevice, OperandsThatMakeNoSenseAreErrorsOfTheirNode) {
  for (const auto& [op, error_text] : {std::pair{"Gather", "an index is outside the axis"},
                                       {"Div", "integer division by zero"},
                                       {"Mod", "integer division by zero"}}) {
    auto graph = std::make_shared<ir::Graph>();
    ir::Builder build(*graph);
    const ir::Type type{ir::DataType::kInt64, {4}};
    const ValueId x = graph->add_input("x", type);
    const ValueId y = graph->add_input("y", type);
    graph->add_output("z", build.node(op, {x, y}, type));
    const Arrays feeds = {{"x", Tensor::int64s({1, 2, 3, 4})},
                          {"y", Tensor::int64s({1, 2, 0, op[0] == 'G' ? 4 : 3})}};
    try {
      run_in_threads({graph}, {feeds}, on(std::make_shared<EmulatedBackend>()));
      FAIL() << "no error for " << op;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(error_text));
      EXPECT_THAT(error.what(), HasSubstr(op));
    }
  }
}

TEST(RunOnDevice, TooLittleMemoryIsSaidBeforeAnythingRuns) {
  const auto backend = std::make_shared<EmulatedBackend>(EmulatedOptions{.memory = 1000});
  const auto graph = small_graph();
  try {
    run_in_threads({graph}, {test::random_feeds(*graph)}, on(backend));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("no room"));
  }
  EXPECT_EQ(backend->counts().launches, 0);
}

TEST(RunOnDevice, AnIndexOutsideItsAxisNamesTheNode) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId table = graph->add_input("table", floats({4, 3}));
  const ValueId ids = graph->add_input("ids", {ir::DataType::kInt64, {2}});
  graph->add_output("y", build.gather(table, ids, 0, "lookup"));
  Arrays feeds = test::random_feeds(*graph);
  feeds["ids"] = Tensor::int64s({1, 4});
  try {
    run_in_threads({graph}, {feeds}, on(std::make_shared<EmulatedBackend>()));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("outside the axis"));
    EXPECT_THAT(error.what(), HasSubstr("Gather"));
  }
}

TEST(RunOnDevice, RepeatedStepsAreKeptAndQueuedAtOnce) {
  const auto graph = small_graph();
  const Arrays feeds = test::random_feeds(*graph);
  const auto backend = std::make_shared<EmulatedBackend>();
  RunOptions options = on(backend);
  options.repeat = 4;
  test::expect_close(run_in_threads({graph}, {feeds}, options).ranks[0].outputs,
                     test::run_graph(*graph, feeds));
  EXPECT_EQ(backend->counts().replays, 3);
  EXPECT_EQ(backend->counts().kept, 0) << "what is kept ends with the run";
  const auto never = std::make_shared<EmulatedBackend>(EmulatedOptions{.captures = false});
  options.backend = never;
  const RunResult queued = run_in_threads({graph}, {feeds}, options);
  test::expect_close(queued.ranks[0].outputs, test::run_graph(*graph, feeds));
  EXPECT_EQ(never->counts().replays, 0);
  EXPECT_THAT(queued.ranks[0].notices, testing::Contains("a step cannot be kept"));
}

TEST(RunOnDevice, AnExchangeWithNobodyIsKeptToo) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", floats({4, 3}));
  const NodeId sum = graph->add_node("AllReduce", {build.unary("Exp", x)}, {floats({4, 3})},
                                     {{"group", std::vector<int64_t>{0}}}, "autosp", {}, "sum");
  graph->add_output("y", build.unary("Neg", graph->node(sum).outputs[0]));
  Arrays feeds = test::random_feeds(*graph);
  const auto backend = std::make_shared<EmulatedBackend>();
  RunOptions options = on(backend);
  const RunResult once = run_in_threads({graph}, {feeds}, options);
  options.repeat = 4;
  const RunResult often = run_in_threads({graph}, {feeds}, options);
  EXPECT_EQ(backend->counts().replays, 3);
  test::expect_close(often.ranks[0].outputs, once.ranks[0].outputs);
  EXPECT_EQ(often.ranks[0].collectives.size(), 1U);
}

// --- Ranks.

constexpr const char* kDomain = "autosp";

ValueId collective(ir::Graph& graph, const char* op, ValueId x, ir::Shape result,
                   ir::Attributes attributes) {
  attributes.set("group", std::vector<int64_t>{0, 1, 2});
  const NodeId id = graph.add_node(op, {x}, {floats(std::move(result))}, std::move(attributes),
                                   kDomain, {}, std::string(op) + " of it");
  return graph.node(id).outputs[0];
}

// Every collective, with work before, beside and after it, in the arena of as few buffers as can
// be.
std::shared_ptr<ir::Graph> graph_of_rank(int rank) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", floats({3, 40}));
  ValueId y = build.unary("Sin", x);
  const std::vector<int64_t> sizes = {10, 16, 14};
  const int64_t own = sizes[static_cast<size_t>(rank)];
  for (int round = 0; round < 3; ++round) {
    const ValueId sum = collective(*graph, "AllReduce", y, {3, 40}, {});
    const ValueId beside = build.unary("Cos", build.unary("Exp", x));
    const ValueId part = collective(*graph, "ReduceScatter", build.binary("Add", sum, beside),
                                    {3, own}, {{"axis", int64_t{1}}, {"sizes", sizes}});
    const ValueId whole = collective(*graph, "AllGather", build.unary("Tanh", part), {3, 40},
                                     {{"axis", int64_t{1}}, {"sizes", sizes}});
    std::vector<int64_t> send_begin, send_extent, recv_begin, recv_extent;
    for (int64_t peer = 0; peer < 3; ++peer) {
      send_begin.insert(send_begin.end(), {peer, 0});
      send_extent.insert(send_extent.end(), {1, 40});
      recv_begin.insert(recv_begin.end(), {0, 40 * peer});
      recv_extent.insert(recv_extent.end(), {1, 40});
    }
    const ValueId exchanged = collective(*graph, "AllToAll", whole, {1, 120},
                                         {{"send_begin", send_begin},
                                          {"send_extent", send_extent},
                                          {"recv_begin", recv_begin},
                                          {"recv_extent", recv_extent}});
    y = build.binary("Mul", build.unary("Sin", build.reshape(exchanged, {3, 40})), whole);
  }
  graph->add_output("y", y);
  return graph;
}

std::vector<Arrays> outputs_of(const RunOptions& options) {
  std::vector<std::shared_ptr<const ir::Graph>> graphs;
  std::vector<Arrays> feeds;
  for (int rank = 0; rank < 3; ++rank) {
    graphs.push_back(graph_of_rank(rank));
    feeds.push_back(test::random_feeds(*graphs.back(), {.seed = static_cast<unsigned>(rank + 1)}));
  }
  std::vector<Arrays> outputs;
  for (RankResult& rank : run_in_threads(graphs, feeds, options).ranks) {
    outputs.push_back(std::move(rank.outputs));
  }
  return outputs;
}

// A transport that knows host memory alone, as MPI's does.
class HostOnly final : public Communicator {
 public:
  explicit HostOnly(Communicator& other) : other_(other) {}
  int rank() const override { return other_.rank(); }
  int size() const override { return other_.size(); }
  void all_reduce(const Collective& c, const ConstBuffer& x, const Buffer& y) override {
    other_.all_reduce(c, x, y);
  }
  void all_gather(const Collective& c, const ConstBuffer& x, const Buffer& y, size_t axis,
                  const std::vector<int64_t>& sizes) override {
    other_.all_gather(c, x, y, axis, sizes);
  }
  void reduce_scatter(const Collective& c, const ConstBuffer& x, const Buffer& y, size_t axis,
                      const std::vector<int64_t>& sizes) override {
    other_.reduce_scatter(c, x, y, axis, sizes);
  }
  void all_to_all(const Collective& c, const ConstBuffer& x, const Buffer& y,
                  const std::vector<Box>& send, const std::vector<Box>& receive) override {
    other_.all_to_all(c, x, y, send, receive);
  }

 private:
  Communicator& other_;
};

TEST(RunOnDevice, CollectivesGoThroughTheHostWhereDevicesDoNotMeet) {
  const std::vector<Arrays> expected = outputs_of({});
  EmulatedBackend backend;
  const KernelTable kernels = device_kernels(backend);
  std::vector<RankResult> results(3);
  run_world(3, 60, [&](int rank, Communicator& communicator) {
    HostOnly host(communicator);
    RankDevice device(backend, host);
    const auto graph = graph_of_rank(rank);
    const Program program = compile(graph, {.kernels = &kernels});
    const Arrays feeds = test::random_feeds(*graph, {.seed = static_cast<unsigned>(rank + 1)});
    results[static_cast<size_t>(rank)] = execute(program, feeds, host, {.device = &device});
  });
  for (size_t rank = 0; rank < 3; ++rank) {
    test::expect_close(results[rank].outputs, expected[rank], 1e-5);
    EXPECT_THAT(results[rank].notices, Contains(HasSubstr("go through host memory")));
    EXPECT_EQ(results[rank].collectives.size(), 12U);
  }
}

// NCCL wants a collective captured by all ranks or by none: here only rank 0 has work on the host.
TEST(RunOnDevice, RanksThatNcclJoinsCaptureTogetherOrNotAtAll) {
  for (const bool differs : {false, true}) {
    EmulatedBackend backend({.missing = {"Exp"}, .joins = true});
    const KernelTable kernels = device_kernels(backend);
    run_world(2, 60, [&](int rank, Communicator& communicator) {
      auto graph = std::make_shared<ir::Graph>();
      ir::Builder build(*graph);
      const ValueId x = graph->add_input("x", floats({4, 3}));
      graph->add_output("y", build.unary(differs && rank == 0 ? "Exp" : "Sin", x));
      HostOnly host(communicator);
      RankDevice device(backend, host);
      const Program program = compile(graph, {.kernels = &kernels});
      execute(program, test::random_feeds(*graph), host, {.repeat = 3, .device = &device});
    });
    EXPECT_EQ(backend.counts().replays, differs ? 0 : 4);
  }
}

// A rank whose device fails within a collective ends the others, which have met it there.
TEST(RunOnDevice, ARankWhoseDeviceFailsEndsTheOthers) {
  const auto backend =
      std::make_shared<EmulatedBackend>(EmulatedOptions{.memory = int64_t{1} << 40});
  std::vector<std::shared_ptr<const ir::Graph>> graphs;
  std::vector<Arrays> feeds;
  for (int rank = 0; rank < 3; ++rank) {
    graphs.push_back(graph_of_rank(rank));
    feeds.push_back(test::random_feeds(*graphs.back()));
  }
  backend->fail_boxes_of(1);
  try {
    run_in_threads(graphs, feeds, on(backend));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("boxes of rank 1"));
  }
}

class RanksOnDevice : public testing::TestWithParam<bool> {};

TEST_P(RanksOnDevice, ExchangeThroughItsMemoryWhenItsTurnHasCome) {
  const std::vector<Arrays> expected = outputs_of({});
  const auto backend =
      std::make_shared<EmulatedBackend>(EmulatedOptions{.early_exchange = GetParam()});
  RunOptions options = on(backend);
  options.repeat = 3;
  const std::vector<Arrays> got = outputs_of(options);
  for (size_t rank = 0; rank < 3; ++rank) {
    SCOPED_TRACE(fmt::format("rank {}", rank));
    test::expect_close(got[rank], expected[rank], 1e-5);
  }
  // The output, and the fault word after each step: no collective goes through the host.
  EXPECT_EQ(backend->counts().downloads, 3 * (1 + 3));
}

INSTANTIATE_TEST_SUITE_P(Streams, RanksOnDevice, testing::Bool(), [](const auto& parameters) {
  return parameters.param ? "ExchangesEarly" : "ExchangesLate";
});

}  // namespace
}  // namespace autosp::executor

// Static plans: what shares memory, where things lie, and that the results stay right.
#include "executor/program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "executor/memory.h"
#include "executor/run.h"
#include "ir/builder.h"
#include "support/run_graph.h"

namespace autosp::executor {
namespace {

using ir::DataType;
using ir::Shape;
using ir::Type;
using testing::HasSubstr;

Type floats(Shape shape) { return {DataType::kFloat32, std::move(shape)}; }

// Runs on one rank, with the plan and without any sharing of memory, and on the reference kernels.
void expect_same_results(const std::shared_ptr<const ir::Graph>& graph, const Arrays& feeds) {
  const Arrays expected = test::run_graph(*graph, feeds);
  for (bool share : {true, false}) {
    RunOptions options;
    options.compile.share_memory = share;
    const RunResult result = run_in_threads({graph}, {feeds}, options);
    test::expect_close(result.ranks[0].outputs, expected);
    // What is live at once has been written; pages are touched as a whole.
    EXPECT_GE(result.ranks[0].measured_peak, result.ranks[0].planned.live_peak);
    EXPECT_LE(result.ranks[0].measured_peak, result.ranks[0].planned.arena + 4096);
  }
}

TEST(Program, PeaksAreMeasuredNotPlanned) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", floats({1 << 16}));
  const ValueId a = build.unary("Exp", x);
  graph->add_output("z", build.binary("Add", build.unary("Sin", a), a));
  for (const auto& [share, buffers] : {std::pair{true, 2}, {false, 3}}) {
    RunOptions options;
    options.compile.share_memory = share;
    const RunResult result = run_in_threads({graph}, {test::random_feeds(*graph)}, options);
    EXPECT_EQ(result.ranks[0].measured_peak, buffers * (int64_t{4} << 16));
    EXPECT_GT(result.resident_peak, result.ranks[0].measured_peak);
  }
}

// An arena is not in use because it was set aside.
TEST(Program, UntouchedMemoryIsNotMeasured) {
  const Arena arena(int64_t{64} << 20);
  EXPECT_EQ(arena.touched_bytes(), 0);
  *arena.at(5000) = std::byte{1};
  EXPECT_GE(arena.touched_bytes(), 4096);
  EXPECT_LE(arena.touched_bytes(), 2 << 20);  // a huge page at most
}

TEST(Program, DataBeyondItsFileIsRefused) {
  const std::filesystem::path folder = testing::TempDir();
  const std::string file = "program_test_" + std::to_string(::getpid()) + ".bin";
  std::ofstream(folder / file) << std::string(64, 'x');
  for (const int64_t offset : {int64_t{60}, int64_t{68}, INT64_MAX - 3}) {
    ir::Graph graph;
    const ValueId w = graph.add_external("w", floats({2}), {file, offset, 8});
    MappedFiles files(folder);
    EXPECT_THROW(files.data(graph.value(w)), Error) << offset;
  }
  std::filesystem::remove(folder / file);
}

TEST(Program, ViewsShareBytes) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", floats({4, 6}));
  const ValueId y = build.unary("Exp", x);
  const ValueId view = build.reshape(y, {2, 12});
  const ValueId unsqueezed = build.unsqueeze(view, {0});
  graph->add_output("z", build.reduce_sum(unsqueezed, {0, 1, 2}, false));
  const Program program = compile(graph);
  EXPECT_EQ(program.place(y).buffer, program.place(unsqueezed).buffer);
  EXPECT_EQ(program.memory().live_peak, 4 * 6 * 4 + 4);
  expect_same_results(graph, test::random_feeds(*graph));
}

TEST(Program, ElementwiseResultsLieOverOperandsThatDie) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", floats({8}));
  const ValueId a = build.unary("Exp", x);
  const ValueId b = build.binary("Mul", a, a);
  const ValueId c = build.binary("Add", b, a);  // b dies here
  graph->add_output("c", c);
  const Program program = compile(graph);
  EXPECT_NE(program.place(a).buffer, program.place(b).buffer);  // a is still read
  EXPECT_EQ(program.place(b).buffer, program.place(c).buffer);
  expect_same_results(graph, test::random_feeds(*graph));
}

TEST(Program, AnOperandThatIsReadThroughAViewLaterIsNotOverwritten) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", floats({2, 4}));
  const ValueId a = build.unary("Exp", x);
  const ValueId view = build.reshape(a, {8});
  const ValueId b = build.unary("Neg", a);
  graph->add_output("b", b);
  graph->add_output("view", build.unary("Sqrt", view));
  const Program program = compile(graph);
  EXPECT_NE(program.place(a).buffer, program.place(b).buffer);
  expect_same_results(graph, test::random_feeds(*graph));
}

TEST(Program, ABroadcastOperandIsNotOverwritten) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", floats({3, 1}));
  const ValueId column = build.unary("Exp", x);
  const ValueId row = build.reshape(column, {1, 3});
  graph->add_output("outer", build.binary("Mul", column, row));
  expect_same_results(graph, test::random_feeds(*graph));
}

TEST(Program, ScatterAddsInPlaceUnlessItsUpdatesLieThere) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", floats({3, 2}));
  const ValueId base = build.unary("Exp", x);
  const ValueId rows =
      build.constant(ir::Tensor::from_values<int64_t>({3, 1}, std::vector<int64_t>{1, 2, 1}));
  const ValueId first = build.scatter_nd(base, rows, x, "add");
  const ValueId second = build.scatter_nd(first, rows, first, "add");
  graph->add_output("y", second);
  const Program program = compile(graph);
  EXPECT_EQ(program.place(base).buffer, program.place(first).buffer);
  EXPECT_NE(program.place(first).buffer, program.place(second).buffer);
  expect_same_results(graph, test::random_feeds(*graph));
}

// Small outputs among large results: they survive the run, whose memory does not.
TEST(Program, OutputsOutliveTheRun) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  ValueId x = graph->add_input("x", floats({64, 1024}));
  for (int64_t k = 0; k < 4; ++k) {
    graph->add_output(fmt::format("mean{}", k), build.reduce("ReduceMean", x, {0, 1}, false));
    graph->add_output(fmt::format("part{}", k), build.slice(x, 1, 100 * k, 100 * k + 300));
    x = build.matmul(build.transpose(x, {1, 0}), x);
    x = build.slice(x, 0, 0, 64);
  }
  expect_same_results(graph, test::random_feeds(*graph));
}

TEST(Program, InputsAndConstantsCanBeOutputs) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", floats({2, 2}));
  graph->add_output("flat", build.reshape(x, {4}));
  graph->add_output("constant", build.scalar(DataType::kFloat32, 3));
  expect_same_results(graph, test::random_feeds(*graph));
}

TEST(Program, AnOperatorWithoutKernelIsNamed) {
  auto graph = std::make_shared<ir::Graph>();
  const ValueId x = graph->add_input("x", floats({2}));
  const NodeId node = graph->add_node("Frobnicate", {x}, {floats({2})}, {}, "", {}, "layer3/frob");
  graph->add_output("y", graph->node(node).outputs[0]);
  try {
    compile(graph);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("layer3/frob"));
    EXPECT_THAT(error.what(), HasSubstr("Frobnicate"));
  }
}

TEST(Run, AFeedThatIsMissingOrOfAnotherShapeIsNamed) {
  auto graph = std::make_shared<ir::Graph>();
  const ValueId x = graph->add_input("input_ids", floats({2}));
  graph->add_output("y", x);
  const auto error_of = [&](const Arrays& feeds) -> std::string {
    try {
      run_in_threads({graph}, {feeds});
      return "no error";
    } catch (const Error& error) {
      return error.what();
    }
  };
  EXPECT_THAT(error_of({{"input_id", ir::Tensor(floats({2}))}}),
              testing::AllOf(HasSubstr("\"input_ids\""), HasSubstr("\"input_id\"")));
  EXPECT_THAT(error_of({{"input_ids", ir::Tensor(floats({3}))}}),
              testing::AllOf(HasSubstr("float32[2]"), HasSubstr("float32[3]")));
}

// Ranks of a data-parallel sum, one of which fails.
std::shared_ptr<const ir::Graph> rank_graph(int64_t index) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x", floats({3, 2}));
  const ValueId row = build.gather(x, build.int64s({index}), 0);
  const std::vector<int64_t> group = {0, 1, 2};
  graph->add_output(
      "sum", build.node("AllReduce", {row}, graph->type(row), {{"group", group}}, "autosp", "sum"));
  return graph;
}

TEST(Run, RanksSumTheirRows) {
  const Arrays feeds = {
      {"x", ir::Tensor::from_values<float>({3, 2}, std::vector<float>{1, 2, 30, 40, 500, 600})}};
  const RunResult result =
      run_in_threads({rank_graph(0), rank_graph(1), rank_graph(2)}, {feeds, feeds, feeds});
  ASSERT_EQ(result.ranks.size(), 3U);
  for (const RankResult& rank : result.ranks) {
    EXPECT_EQ(rank.outputs.at("sum").value_as_double(0), 531);
    EXPECT_EQ(rank.outputs.at("sum").value_as_double(1), 642);
    ASSERT_EQ(rank.collectives.size(), 1U);
    EXPECT_EQ(rank.collectives[0].bytes_sent, 2 * 8 * 2 / 3);
  }
}

TEST(Run, ARankThatFailsEndsTheOthersWithItsError) {
  const Arrays feeds = {{"x", ir::Tensor(floats({3, 2}))}};
  try {
    run_in_threads({rank_graph(0), rank_graph(9), rank_graph(2)}, {feeds, feeds, feeds});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("index 9 is outside"));
    EXPECT_THAT(error.what(), HasSubstr("on rank 1"));
  }
}

}  // namespace
}  // namespace autosp::executor

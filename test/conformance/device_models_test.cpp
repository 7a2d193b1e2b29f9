// Every committed training graph, split over ranks that run on devices, against the CPU: with
// exchanges as late as streams and events allow, and as early.
#include <gtest/gtest.h>

#include "executor/absorb_epilogues.h"
#include "executor/run.h"
#include "shard/plan.h"
#include "support/committed_models.h"
#include "support/devices.h"
#include "support/emulated_device.h"
#include "support/rank_feeds.h"
#include "support/run_graph.h"
#include "transforms/pipeline.h"
#include "transforms/spmd/emit_ranks.h"
#include "transforms/spmd/program.h"

namespace autosp::executor {
namespace {

using test::CommittedModel;

struct Ranks {
  std::vector<std::shared_ptr<const ir::Graph>> graphs;
  std::vector<Arrays> feeds;
};

Ranks shard_over(const ir::Graph& graph, const shard::PlanOptions& options) {
  const shard::Plan plan = shard::make_plan(graph, shard::detect_roles(graph), options);
  const transforms::SpmdProgram program = transforms::build_program(plan);
  const test::Tensors feeds = test::random_feeds(graph);
  Ranks ranks;
  for (int64_t rank = 0; rank < plan.mesh.size(); ++rank) {
    ranks.graphs.push_back(std::make_shared<ir::Graph>(transforms::emit_rank(program, rank)));
    ranks.feeds.push_back(transforms::rank_feeds(program, feeds, rank));
  }
  return ranks;
}

void expect_same(const RunResult& got, const RunResult& want) {
  ASSERT_EQ(got.ranks.size(), want.ranks.size());
  for (size_t rank = 0; rank < want.ranks.size(); ++rank) {
    SCOPED_TRACE(fmt::format("rank {}", rank));
    test::expect_close(got.ranks[rank].outputs, want.ranks[rank].outputs, 1e-4);
  }
}

// Convolutions and running sums have no kernel; no graph of a transformer's layers has them.
bool is_expected(const CommittedModel& model, const std::string& notice) {
  return model.file.starts_with("adversarial") &&
         (notice.ends_with("host: Conv, ConvTranspose") || notice.ends_with("host: CumSum"));
}

// Two models work on blocks of the sequence, of which they have four here.
int64_t most_ranks(const CommittedModel& model) {
  const bool blocks = model.file.find("/block_local_attention") != std::string::npos ||
                      model.file.find("/chunked_cross_entropy") != std::string::npos;
  return blocks ? 4 : 8;
}

class DeviceModels : public testing::TestWithParam<CommittedModel> {};

TEST_P(DeviceModels, RanksGiveWhatTheyGiveOnTheCpu) {
  const ir::Graph graph = transforms::run_passes(test::import_committed(GetParam()));
  for (const shard::PlanOptions& mesh :
       std::vector<shard::PlanOptions>{{.sp = 1}, {.sp = 3}, {.sp = 2, .dp = 2}}) {
    SCOPED_TRACE(fmt::format("sp {}, dp {}", mesh.sp, mesh.dp));
    const Ranks ranks = shard_over(graph, mesh);
    const RunResult want = run_in_threads(ranks.graphs, ranks.feeds, {.threads_per_rank = 1});
    for (const bool early : {false, true}) {
      SCOPED_TRACE(early ? "exchanges early, threads backwards" : "exchanges late");
      const RunOptions options{
          .threads_per_rank = 1,
          .backend = std::make_shared<test::EmulatedBackend>(test::EmulatedOptions{
              .early_exchange = early, .backwards = early, .refuses_epilogues = early})};
      const RunResult got = run_in_threads(ranks.graphs, ranks.feeds, options);
      expect_same(got, want);
      for (const std::string& notice : got.ranks[0].notices) {
        EXPECT_TRUE(is_expected(GetParam(), notice)) << notice;
      }
    }
  }
}

TEST_P(DeviceModels, FusedChainsGiveWhatTheirOperatorsGive) {
  const ir::Graph graph = transforms::run_passes(test::import_committed(GetParam()));
  const Ranks ranks = shard_over(graph, {.sp = 3});
  RunOptions options{.threads_per_rank = 1, .backend = std::make_shared<test::EmulatedBackend>()};
  const RunResult want = run_in_threads(ranks.graphs, ranks.feeds, options);
  options.compile.fuse = true;
  const RunResult got = run_in_threads(ranks.graphs, ranks.feeds, options);
  expect_same(got, want);
  EXPECT_EQ(got.ranks[0].notices, want.ranks[0].notices);
}

Program program_on(const test::EmulatedOptions& options, std::shared_ptr<const ir::Graph> graph) {
  const test::EmulatedBackend backend(options);
  const KernelTable kernels = device_kernels(backend);
  return compile(std::move(graph), {.kernels = &kernels});
}

// Every layer adds what its products give to the residual.
TEST_P(DeviceModels, ProductsTakeOverSumsAndNoMoreMemoryIsLive) {
  const ir::Graph graph = transforms::run_passes(test::import_committed(GetParam()));
  const Ranks ranks = shard_over(graph, {.sp = 2});
  const Program fused = program_on({}, ranks.graphs[0]);
  const Program apart = program_on({.missing = {std::string(kFusedMatMul)}}, ranks.graphs[0]);
  EXPECT_GE(test::count_nodes(fused.graph(), kFusedMatMul, ir::kAutospDomain), 2);
  EXPECT_EQ(test::count_nodes(apart.graph(), kFusedMatMul, ir::kAutospDomain), 0);
  EXPECT_LE(fused.memory().live_peak, apart.memory().live_peak);
}

TEST_P(DeviceModels, RanksShareACudaDevice) {
  const test::FoundDevice found = test::find_device("cuda");
  if (found.backend == nullptr) GTEST_SKIP() << found.reason;
  const ir::Graph graph = transforms::run_passes(test::import_committed(GetParam()));
  for (const int64_t sp : {1, 2, 4, 8}) {
    if (sp > most_ranks(GetParam())) continue;
    const Ranks ranks = shard_over(graph, {.sp = sp});
    const RunResult want = run_in_threads(ranks.graphs, ranks.feeds, {.threads_per_rank = 1});
    for (const bool fuse : {false, true}) {
      if (fuse && sp != 2) continue;  // what is compiled takes its time
      SCOPED_TRACE(fuse ? "fused" : "one by one");
      RunOptions options{.threads_per_rank = 1, .backend = found.backend};
      options.compile.fuse = fuse;
      expect_same(run_in_threads(ranks.graphs, ranks.feeds, options), want);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Committed, DeviceModels, testing::ValuesIn(test::committed_models({20})),
                         [](const auto& parameters) {
                           return test::identifier_of(parameters.param);
                         });

}  // namespace
}  // namespace autosp::executor

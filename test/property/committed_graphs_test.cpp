// The numeric law on real graphs: run(shard(g, P)) = run(g), loss and every gradient by name, all
// on the reference kernels; and every rank calls the same collectives in the same order.
#include <gtest/gtest.h>

#include "run_program.h"
#include "shard/plan.h"
#include "support/committed_models.h"
#include "support/run_graph.h"
#include "transforms/pipeline.h"
#include "transforms/spmd/emit_ranks.h"
#include "transforms/spmd/emulate.h"
#include "transforms/spmd/program.h"

namespace autosp::transforms {
namespace {

using ir::Graph;
using test::CommittedModel;
using test::run_graph;

constexpr int64_t kRanks[] = {2, 3, 4};

class CommittedGraphs : public testing::TestWithParam<CommittedModel> {};

std::vector<std::string> collectives_of(const Graph& graph) {
  std::vector<std::string> names;
  for (const ir::Node& node : graph.nodes()) {
    if (node.domain == ir::kAutospDomain) names.push_back(node.op + " " + node.name);
  }
  return names;
}

TEST_P(CommittedGraphs, ShardedEqualsWholeAndRanksAgreeOnCollectives) {
  const Graph graph = run_passes(import_committed(GetParam()));
  const shard::Roles roles = shard::detect_roles(graph);
  const test::Tensors feeds = test::random_feeds(graph);
  const test::Tensors whole = run_graph(graph, feeds);
  for (int64_t ranks : kRanks) {
    SCOPED_TRACE(fmt::format("{} ranks", ranks));
    const shard::Plan plan = shard::make_plan(graph, roles, {.sp = ranks});
    const SpmdProgram program = build_program(plan);
    test::expect_close(run_graph(emulate(program), feeds), whole, 1e-4);
    const auto first = collectives_of(emit_rank(program, 0));
    for (int64_t rank = 1; rank < ranks; ++rank) {
      EXPECT_EQ(collectives_of(emit_rank(program, rank)), first) << "rank " << rank;
    }
  }
}

// Collectives beside computation compute the same bits.
void expect_same_beside(const SpmdProgram& program, const test::Tensors& feeds,
                        const executor::RunResult& after) {
  const executor::RunResult beside = run_program(program, feeds, true);
  for (size_t rank = 0; rank < after.ranks.size(); ++rank) {
    for (const auto& [name, tensor] : after.ranks[rank].outputs) {
      EXPECT_TRUE(std::ranges::equal(beside.ranks[rank].outputs.at(name).bytes(), tensor.bytes()))
          << name << " on rank " << rank;
    }
  }
}

// Runs every rank on each kind of mesh: all must hold every result.
void expect_whole_results(const Graph& graph, const shard::Roles& roles,
                          const std::vector<shard::PlanOptions>& meshes) {
  const test::Tensors feeds = test::random_feeds(graph);
  const test::Tensors whole = run_graph(graph, feeds);
  for (const shard::PlanOptions& options : meshes) {
    const shard::Plan plan = shard::make_plan(graph, roles, options);
    SCOPED_TRACE(plan.mesh.to_string());
    const SpmdProgram program = build_program(plan);
    const executor::RunResult run = run_program(program, feeds);
    if (&options == &meshes.front()) expect_same_beside(program, feeds, run);
    ASSERT_EQ(run.ranks.size(), static_cast<size_t>(plan.mesh.size()));
    for (const executor::RankResult& rank : run.ranks) {
      SCOPED_TRACE(fmt::format("rank {}", rank.rank));
      test::expect_close(rank.outputs, whole, 1e-4);
    }
  }
}

TEST_P(CommittedGraphs, EveryRankThatRunsHoldsTheWholeResults) {
  const Graph graph = run_passes(import_committed(GetParam()));
  const shard::Roles roles = shard::detect_roles(graph);
  // Models that work on blocks of the sequence split by whole blocks, of which there may be few.
  const int64_t most = shard::make_plan(graph, roles, {}).most_sequence_ranks;
  expect_whole_results(
      graph, roles, {{.sp = 3, .dp = 2}, {.sp = 4, .dp = 2}, {.sp = std::min<int64_t>(8, most)}});
}

// As many ranks as one likes: query positions are split where heads do not suffice.
TEST_P(CommittedGraphs, QueriesAreSplitWhereHeadsDoNotSuffice) {
  const Graph graph = run_passes(import_committed(GetParam()));
  const shard::Roles roles = shard::detect_roles(graph);
  const shard::Plan undivided = shard::make_plan(graph, roles, {});
  if (!undivided.attention_sizes().splits_queries) {
    EXPECT_TRUE(undivided.attention.contractions.empty());
    return;
  }
  const auto at_most = [&](int64_t ranks) {
    return std::min<int64_t>(ranks, undivided.most_sequence_ranks);
  };
  expect_whole_results(graph, roles,
                       {{.sp = at_most(5), .dp = 2, .sp_mesh = {{"r", at_most(5)}}},
                        {.sp = at_most(7)},
                        {.sp = at_most(16)}});
  for (int64_t ranks : {at_most(5), at_most(7), at_most(16)}) {
    const shard::Plan plan = shard::make_plan(graph, roles, {.sp = ranks});
    // What no softmax normalises is split by heads on one axis only.
    if (!plan.attention.unnormalised.classes.empty()) continue;
    for (const shard::GatheredOperator& gathered : plan.gathered)
      EXPECT_FALSE(plan.attention.touches[gathered.node.index()]) << gathered.reason;
  }
}

INSTANTIATE_TEST_SUITE_P(All, CommittedGraphs, testing::ValuesIn(test::committed_models({61})),
                         [](const auto& model) { return identifier_of(model.param); });

}  // namespace
}  // namespace autosp::transforms

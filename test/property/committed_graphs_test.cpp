// The numeric law on real graphs: run(shard(g, P)) = run(g), loss and every gradient by name, all
// on the reference kernels; and every rank calls the same collectives in the same order.
#include <gtest/gtest.h>

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

INSTANTIATE_TEST_SUITE_P(All, CommittedGraphs, testing::ValuesIn(test::committed_models({61})),
                         [](const auto& model) { return identifier_of(model.param); });

}  // namespace
}  // namespace autosp::transforms

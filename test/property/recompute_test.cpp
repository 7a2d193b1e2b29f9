// The numeric law holds whatever is recomputed, and each policy holds less than the one before it.
#include <gtest/gtest.h>

#include <algorithm>

#include "executor/run.h"
#include "llama_step.h"
#include "shard/plan.h"
#include "support/committed_models.h"
#include "support/run_graph.h"
#include "transforms/pipeline.h"
#include "transforms/recompute/recompute.h"
#include "transforms/spmd/emit_ranks.h"
#include "transforms/spmd/emulate.h"
#include "transforms/spmd/geometry.h"

namespace autosp::transforms {
namespace {

using ir::Graph;
using test::CommittedModel;
using test::run_graph;

constexpr RecomputePolicy kPolicies[] = {RecomputePolicy::kNone, RecomputePolicy::kMinCut,
                                         RecomputePolicy::kSac, RecomputePolicy::kFull};

SpmdProgram with_policy(const SpmdProgram& program, RecomputePolicy policy) {
  return apply_recompute(program, plan_recompute(program, policy));
}

size_t recomputed_nodes(const Graph& graph) {
  return static_cast<size_t>(std::ranges::count(graph.nodes(), "recompute", &ir::Node::phase));
}

// Copies compute the same from the same: the bits are the same.
void expect_equal(const test::Tensors& got, const test::Tensors& want) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, tensor] : want) {
    EXPECT_TRUE(std::ranges::equal(got.at(name).bytes(), tensor.bytes())) << name;
  }
}

class RecomputeCommittedGraphs : public testing::TestWithParam<CommittedModel> {};

TEST_P(RecomputeCommittedGraphs, LossAndGradientsStayTheSame) {
  const Graph graph = run_passes(import_committed(GetParam()));
  const shard::Roles roles = shard::detect_roles(graph);
  if (!roles.loss) GTEST_SKIP() << "has no loss";
  const test::Tensors feeds = test::random_feeds(graph);
  const shard::Plan plan = shard::make_plan(graph, roles, {.sp = 2});
  const SpmdProgram program = build_program(plan);
  const test::Tensors sharded = run_graph(emulate(program), feeds);
  test::expect_close(sharded, run_graph(graph, feeds), 1e-4);
  for (RecomputePolicy policy : kPolicies) {
    SCOPED_TRACE(name_of(policy));
    const SpmdProgram changed = with_policy(program, policy);
    expect_equal(run_graph(emulate(changed), feeds), sharded);
    if (policy == RecomputePolicy::kFull) {
      EXPECT_GT(recomputed_nodes(emit_rank(changed, 0)), 0U);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, RecomputeCommittedGraphs,
                         testing::ValuesIn(test::committed_models({61})),
                         [](const auto& model) { return identifier_of(model.param); });

struct Llama {
  explicit Llama(int64_t layers, int64_t sequence, int64_t sp)
      : graph(run_passes(bench::llama_step({.layers = layers,
                                            .batch = 1,
                                            .sequence = sequence,
                                            .hidden = 64,
                                            .heads = 4,
                                            .kv_heads = 2,
                                            .inner = 160,
                                            .vocabulary = 50}))),
        plan(shard::make_plan(graph, shard::detect_roles(graph), {.sp = sp})),
        program(build_program(plan)) {}
  Graph graph;
  shard::Plan plan;
  SpmdProgram program;
};

executor::Program compiled(const SpmdProgram& program) {
  return executor::compile(std::make_shared<Graph>(emit_rank(program, 0)));
}

TEST(Recompute, EveryPolicyHoldsLessThanTheOneBefore) {
  const Llama llama(6, 512, 2);
  int64_t before = std::numeric_limits<int64_t>::max();
  int64_t kept_before = before;
  for (RecomputePolicy policy : kPolicies) {
    const RecomputePlan plan = plan_recompute(llama.program, policy);
    const executor::MemoryPlan memory = compiled(apply_recompute(llama.program, plan)).memory();
    fmt::print("{:<7} kept {:>9} arena {:>9} live {:>9} at {}\n", name_of(policy), plan.kept_bytes,
               memory.arena, memory.live_peak, memory.peak_node);
    EXPECT_LT(memory.arena, before) << name_of(policy);
    EXPECT_LT(plan.kept_bytes, kept_before) << name_of(policy);
    before = memory.arena;
    kept_before = plan.kept_bytes;
  }
}

// Merging equal nodes, as is done before a graph is written, leaves the copies alone.
TEST(Recompute, CopiesSurviveTheMergingOfEqualNodes) {
  const Llama llama(2, 64, 2);
  const SpmdProgram changed = with_policy(llama.program, RecomputePolicy::kFull);
  const Graph rank = emit_rank(changed, 0);
  const Graph merged = run_passes(rank, {.passes = {"eliminate_common_subexpressions"}});
  EXPECT_GT(recomputed_nodes(rank), 50U);
  EXPECT_EQ(recomputed_nodes(merged), recomputed_nodes(rank));
}

}  // namespace
}  // namespace autosp::transforms

// The numeric law holds whatever is recomputed, and each policy holds less than the one before it.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "executor/memory_buckets.h"
#include "ir/builder.h"
#include "llama_step.h"
#include "run_program.h"
#include "shard/plan.h"
#include "support/committed_models.h"
#include "support/run_graph.h"
#include "transforms/pipeline.h"
#include "transforms/recompute/budget.h"
#include "transforms/recompute/forward_pass.h"
#include "transforms/recompute/policies.h"
#include "transforms/recompute/price.h"
#include "transforms/recompute/recompute.h"
#include "transforms/spmd/emit_ranks.h"
#include "transforms/spmd/emulate.h"

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

void expect_same_results(const CommittedModel& model, bool fuse_attention) {
  const Graph graph = run_passes(import_committed(model), {.fuse_attention = fuse_attention});
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

TEST_P(RecomputeCommittedGraphs, LossAndGradientsStayTheSame) {
  expect_same_results(GetParam(), false);
}

TEST_P(RecomputeCommittedGraphs, LossAndGradientsStayTheSameWithFusedAttention) {
  expect_same_results(GetParam(), true);
}

INSTANTIATE_TEST_SUITE_P(All, RecomputeCommittedGraphs,
                         testing::ValuesIn(test::committed_models({61})),
                         [](const auto& model) { return identifier_of(model.param); });

struct Llama {
  explicit Llama(int64_t layers, int64_t sequence, int64_t sp, bool fuse_attention = true)
      : graph(run_passes(bench::llama_step({.layers = layers,
                                            .batch = 1,
                                            .sequence = sequence,
                                            .hidden = 64,
                                            .heads = 4,
                                            .kv_heads = 2,
                                            .inner = 160,
                                            .vocabulary = 50}),
                         {.fuse_attention = fuse_attention})),
        plan(shard::make_plan(graph, shard::detect_roles(graph), {.sp = sp})),
        program(build_program(plan)) {}
  Graph graph;
  shard::Plan plan;
  SpmdProgram program;
};

executor::Program compiled(const SpmdProgram& program) {
  return executor::compile(std::make_shared<Graph>(emit_rank(program, 0)));
}

void expect_falling_peaks(bool fuse_attention) {
  const Llama llama(6, 512, 2, fuse_attention);
  int64_t before = std::numeric_limits<int64_t>::max();
  int64_t kept_before = before;
  for (RecomputePolicy policy : kPolicies) {
    const RecomputePlan plan = plan_recompute(llama.program, policy);
    const executor::MemoryPlan memory = compiled(apply_recompute(llama.program, plan)).memory();
    EXPECT_LT(memory.arena, before) << name_of(policy);
    EXPECT_LT(plan.kept_bytes, kept_before) << name_of(policy);
    before = memory.arena;
    kept_before = plan.kept_bytes;
  }
}

TEST(Recompute, EveryPolicyHoldsLessThanTheOneBefore) {
  for (bool fuse_attention : {false, true}) {
    SCOPED_TRACE(fuse_attention);
    expect_falling_peaks(fuse_attention);
  }
}

// What sac adds to full is that attention never runs twice.
TEST(Recompute, OnlyFullRunsAttentionTwice) {
  const Llama llama(3, 128, 2);
  for (RecomputePolicy policy : kPolicies) {
    const Graph rank = emit_rank(with_policy(llama.program, policy), 0);
    EXPECT_EQ(test::count_nodes(rank, "Attention", ir::kAutospDomain),
              policy == RecomputePolicy::kFull ? 6U : 3U)
        << name_of(policy);
  }
}

// loss = sum over tokens of x w + max(tanh(x w v)), and a gradient which asks what equals the
// maximum.
Graph of_maxima() {
  Graph graph;
  ir::Builder build(graph);
  const ir::DataType dtype = ir::DataType::kFloat32;
  const ValueId x = graph.add_input("x", {dtype, {2, 64, 16}});
  const ValueId w = graph.add_input("w", {dtype, {16, 1}});
  std::vector<float> factors(512);
  std::iota(factors.begin(), factors.end(), -200.0F);
  const ValueId v = build.constant(ir::Tensor::from_values<float>({512}, factors));
  const ValueId a = build.matmul(x, w);
  const ValueId h = build.unary("Tanh", build.binary("Mul", a, v));
  const ValueId most = build.node("ReduceMax", {h, build.int64s({2})}, ir::Type{dtype, {2, 64, 1}},
                                  {{"keepdims", int64_t{1}}});
  graph.add_output("loss", build.reduce_sum(build.binary("Add", most, a), {0, 1, 2}, false));
  const ValueId slope = build.binary("Sub", build.scalar(dtype, 1), build.binary("Mul", h, h));
  const ValueId chosen = build.cast(build.binary("Equal", h, most), dtype);
  const ValueId g = build.binary("Mul", build.binary("Mul", chosen, slope), v);
  const ValueId rows = build.transpose(build.reshape(x, {128, 16}), {1, 0});
  const ValueId of_tokens = build.reshape(build.reduce_sum(g, {2}, true), {128, 1});
  graph.add_output("w_grad", build.matmul(rows, of_tokens));
  return graph;
}

TEST(Recompute, WhatIsComparedStaysAsItIs) {
  const Graph graph = of_maxima();
  const shard::Roles roles = shard::detect_roles(
      graph,
      {.sequence = {"x:1"}, .batch = {"x:0"}, .loss = "loss", .gradients = {{"w", "w_grad"}}});
  const shard::Plan plan = shard::make_plan(graph, roles, {.sp = 2});
  const SpmdProgram program = build_program(plan);
  const ForwardPass forward(program);
  const CutProblem problem = priced_problem(forward);
  std::map<std::string, bool> forbidden;  // by operator
  for (size_t k = 0; k < program.instructions.size(); ++k) {
    const ir::Node* node = forward.node(k);
    if (node != nullptr && forward.is_forward(k)) forbidden[node->op] = problem.forbidden[k];
  }
  EXPECT_FALSE(forbidden.at("Mul"));
  EXPECT_TRUE(forbidden.at("Tanh"));
  EXPECT_TRUE(forbidden.at("ReduceMax"));
}

int64_t arena_of(const SpmdProgram& program) { return compiled(program).memory().arena; }
int64_t peak_of(const SpmdProgram& program, int64_t /*enough*/) { return arena_of(program); }

TEST(Recompute, EveryBudgetIsKeptAndMoreMemoryNeverTakesLonger) {
  const Llama llama(4, 256, 2);
  const std::vector<double> seconds = instruction_seconds(llama.program, *cost::find_device("cpu"));
  const auto arena = [&](RecomputePolicy policy) {
    return arena_of(with_policy(llama.program, policy));
  };
  const int64_t full = arena(RecomputePolicy::kFull);
  const int64_t none = arena(RecomputePolicy::kNone);
  double before = std::numeric_limits<double>::max();
  constexpr int kSteps = 8;
  for (int k = 0; k <= kSteps; ++k) {
    const int64_t budget = full + (none - full) * k / kSteps;
    const RecomputePlan plan = plan_recompute_within(
        llama.program, {.bytes = budget, .seconds = seconds, .peak = peak_of});
    EXPECT_LE(arena_of(apply_recompute(llama.program, plan)), budget);
    double again = 0;
    for (size_t i = 0; i < seconds.size(); ++i) again += plan.recomputed[i] ? seconds[i] : 0;
    EXPECT_LE(again, before) << budget;
    before = again;
  }
  EXPECT_EQ(before, 0);
  EXPECT_THROW(plan_recompute_within(llama.program,
                                     {.bytes = full / 4, .seconds = seconds, .peak = peak_of}),
               Error);
}

// Of two ranks the second takes more. What the first cannot do with is not tried on the second, but
// the least that is named would do for both.
TEST(Recompute, TheLeastThatARefusalNamesIsEnoughOnEveryRank) {
  const Llama llama(2, 64, 2);
  const std::vector<double> seconds = instruction_seconds(llama.program, *cost::find_device("cpu"));
  int on_the_first = 0;
  int on_the_second = 0;
  const auto peak = [&](const SpmdProgram& program, int64_t enough) {
    ++on_the_first;
    const int64_t first = arena_of(program);
    if (first > enough) return first;
    ++on_the_second;
    return first + 4096;
  };
  const auto plan = [&](int64_t bytes) {
    return plan_recompute_within(llama.program, {.bytes = bytes, .seconds = seconds, .peak = peak});
  };
  int64_t least = 0;
  try {
    plan(1);
    FAIL() << "nothing needs a byte alone";
  } catch (const Error& error) {
    const std::string note = error.notes().at(0);
    least = std::stoll(note.substr(note.rfind('(') + 1));
  }
  EXPECT_LT(2 * on_the_second, on_the_first);
  EXPECT_EQ(peak(apply_recompute(llama.program, plan(least)), least), least);
  EXPECT_THROW(plan(least - 1), Error);
}

TEST(Recompute, BudgetsLeaveResultsAlone) {
  const Llama llama(3, 48, 2);
  const test::Tensors feeds = test::random_feeds(llama.graph);
  const test::Tensors sharded = run_graph(emulate(llama.program), feeds);
  const std::vector<double> seconds =
      instruction_seconds(llama.program, *cost::find_device("h100"));
  const int64_t full = arena_of(with_policy(llama.program, RecomputePolicy::kFull));
  const int64_t none = arena_of(llama.program);
  for (int k = 0; k <= 3; ++k) {
    const RecomputePlan plan = plan_recompute_within(
        llama.program,
        {.bytes = full + (none - full) * k / 3, .seconds = seconds, .peak = peak_of});
    expect_equal(run_graph(emulate(apply_recompute(llama.program, plan)), feeds), sharded);
  }
}

// The arena is what a run touches, and the buckets say what is in it.
TEST(Recompute, PredictedPeaksAreMeasured) {
  const Llama llama(4, 512, 2);
  const test::Tensors feeds = test::random_feeds(llama.graph);
  for (RecomputePolicy policy : kPolicies) {
    SCOPED_TRACE(name_of(policy));
    const SpmdProgram program = with_policy(llama.program, policy);
    const executor::RunResult run = run_program(program, feeds);
    ASSERT_EQ(run.ranks.size(), 2U);
    for (const executor::RankResult& rank : run.ranks) {
      const auto planned = static_cast<double>(rank.planned.arena);
      EXPECT_NEAR(static_cast<double>(rank.measured_peak), planned, 0.02 * planned);
    }
    const auto graph = std::make_shared<const Graph>(emit_rank(program, 0));
    const executor::Program rank = executor::compile(graph);
    const executor::MemoryBuckets buckets =
        executor::memory_at_peak(rank, std::vector<bool>(graph->inputs().size(), true));
    const auto in = [&](executor::Bucket bucket) { return buckets[static_cast<size_t>(bucket)]; };
    EXPECT_EQ(std::accumulate(buckets.begin() + 2, buckets.end(), int64_t{0}), rank.memory().arena);
    EXPECT_GT(in(executor::Bucket::kKeptActivations), 0);
    if (policy == RecomputePolicy::kNone) {
      EXPECT_EQ(in(executor::Bucket::kRecomputed), 0);
    }
    if (policy == RecomputePolicy::kFull) {
      EXPECT_GT(in(executor::Bucket::kRecomputed), 0);
    }
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

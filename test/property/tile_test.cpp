// Running token-wise regions in tiles changes memory, not results.
#include <gtest/gtest.h>

#include "ir/builder.h"
#include "llama_step.h"
#include "run_program.h"
#include "shard/plan.h"
#include "support/committed_models.h"
#include "support/run_graph.h"
#include "transforms/pipeline.h"
#include "transforms/recompute/recompute.h"
#include "transforms/spmd/emit_ranks.h"
#include "transforms/tile/tile.h"

namespace autosp::transforms {
namespace {

using ir::Graph;
using test::CommittedModel;
using test::run_graph;

class TileCommittedGraphs : public testing::TestWithParam<CommittedModel> {};

TEST_P(TileCommittedGraphs, LossAndGradientsStayTheSame) {
  const Graph graph = run_passes(import_committed(GetParam()), {.fuse_attention = true});
  const shard::Roles roles = shard::detect_roles(graph);
  const test::Tensors feeds = test::random_feeds(graph);
  const test::Tensors whole = run_graph(graph, feeds);
  for (int64_t sp : {1, 2}) {
    const shard::Plan plan = shard::make_plan(graph, roles, {.sp = sp});
    SpmdProgram program = build_program(plan);
    if (roles.loss) {
      program = apply_recompute(program, plan_recompute(program, RecomputePolicy::kFull));
    }
    for (int64_t tokens : {5, 11}) {
      SCOPED_TRACE(fmt::format("sp {}, tiles of {}", sp, tokens));
      const SpmdProgram tiled = tile(program, {.tokens = tokens});
      if (GetParam().file.starts_with("llama")) {
        EXPECT_GE(tiled.tile_loops.size(), 3U);
      }
      for (const executor::RankResult& rank : run_program(tiled, feeds).ranks) {
        test::expect_close(rank.outputs, whole, 1e-4);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, TileCommittedGraphs, testing::ValuesIn(test::committed_models({61})),
                         [](const auto& model) { return identifier_of(model.param); });

// No value of all tokens by the vocabulary is left, and the peak falls with it.
TEST(Tile, LogitsAreNeverWhole) {
  const Graph graph = run_passes(bench::llama_step({.layers = 2,
                                                    .batch = 1,
                                                    .sequence = 512,
                                                    .hidden = 32,
                                                    .heads = 4,
                                                    .kv_heads = 2,
                                                    .inner = 96,
                                                    .vocabulary = 20000}));
  const shard::Plan plan = shard::make_plan(graph, shard::detect_roles(graph), {.sp = 2});
  SpmdProgram program = build_program(plan);
  program = apply_recompute(program, plan_recompute(program, RecomputePolicy::kFull));
  const SpmdProgram tiled = tile(program, {.tokens = 32});
  EXPECT_EQ(tiled.tile_loops.size(), 5U);  // the head; every MLP forward and backward

  const auto widest = [](const Graph& rank) {
    int64_t most = 0;
    for (const ir::Node& node : rank.nodes()) {
      for (ValueId id : node.outputs) {
        const ir::Shape& shape = rank.shape(id);
        if (!shape.empty() && shape.back() == 20000 && shape.size() == 3) {
          most = std::max(most, ir::num_elements(shape));
        }
      }
    }
    return most;
  };
  const auto whole_rank = std::make_shared<Graph>(emit_rank(program, 0));
  const auto tiled_rank = std::make_shared<Graph>(emit_rank(tiled, 0));
  EXPECT_EQ(widest(*whole_rank), 256 * 20000);
  EXPECT_EQ(widest(*tiled_rank), 32 * 20000);
  EXPECT_LT(executor::compile(tiled_rank).memory().arena,
            executor::compile(whole_rank).memory().arena / 2);
}

// 512 tiles' terms of a weight's gradient: a bfloat16 sum would stop counting at 256.
TEST(Tile, SumsOver16BitTilesAreRoundedOnce) {
  constexpr int64_t kTokens = 4096;
  const ir::DataType type = ir::DataType::kBFloat16;
  Graph graph;
  ir::Builder build(graph);
  const ValueId x = graph.add_input("inputs_embeds", {type, {1, kTokens, 4}});
  const ValueId w = graph.add_input("w", {type, {4, 64}});
  const ValueId v = graph.add_input("v", {type, {64, 4}});
  const ValueId inner = build.matmul(x, w);
  const ValueId active = build.unary("Relu", inner);
  const ValueId y = build.matmul(active, v);
  const auto flat = [&](ValueId value, int64_t width) {
    return build.reshape(value, {kTokens, width});
  };
  const ValueId ones = build.expand(build.scalar(type, 1.0 / 64), {1, kTokens, 4});
  const ValueId dactive = build.matmul(ones, build.transpose(v, {1, 0}));
  const ValueId dinner = build.where(build.binary("Greater", inner, build.scalar(type, 0)), dactive,
                                     build.scalar(type, 0));
  graph.add_output("loss",
                   build.reduce_sum(build.cast(y, ir::DataType::kFloat32), {0, 1, 2}, false));
  graph.add_output("w.grad", build.matmul(build.transpose(flat(x, 4), {1, 0}), flat(dinner, 64)));
  graph.add_output("v.grad",
                   build.matmul(build.transpose(flat(active, 64), {1, 0}), flat(ones, 4)));
  const test::Tensors feeds = {{"inputs_embeds", ir::Tensor::filled({type, {1, kTokens, 4}}, 0.5)},
                               {"w", ir::Tensor::filled({type, {4, 64}}, 0.5)},
                               {"v", ir::Tensor::filled({type, {64, 4}}, 0.25)}};

  const shard::Plan plan = shard::make_plan(graph, shard::detect_roles(graph), {.sp = 2});
  const SpmdProgram tiled = tile(build_program(plan), {.tokens = 4});
  ASSERT_FALSE(tiled.tile_loops.empty());
  const test::Tensors whole = run_graph(graph, feeds);
  for (const executor::RankResult& rank : run_program(tiled, feeds).ranks) {
    test::expect_close(rank.outputs, whole, 1.0 / 128);
  }
}

}  // namespace
}  // namespace autosp::transforms

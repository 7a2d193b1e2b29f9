// Attention whose keys and values travel around a ring equals the whole: all ranks in one graph,
// and ranks that exchange blocks. Which blocks are attended to, what passes between ranks, and on
// what that depends.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "cost/operator_cost.h"
#include "ir/operator_traits.h"
#include "ring_layer.h"
#include "run_program.h"
#include "shard/plan.h"
#include "support/emulated_device.h"
#include "support/run_graph.h"
#include "transforms/recompute/recompute.h"
#include "transforms/ring_attention/ring.h"
#include "transforms/spmd/emit_ranks.h"
#include "transforms/spmd/emulate.h"
#include "transforms/spmd/program.h"

namespace autosp::transforms {
namespace {

using ir::DataType;
using ir::Graph;
using namespace ring_layer;

struct Case {
  const char* name;
  Options layer;
  shard::PlanOptions mesh;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

shard::PlanOptions ring(std::map<std::string, int64_t> sizes, int64_t dp = 1) {
  int64_t sp = 1;
  for (const auto& [axis, size] : sizes) sp *= size;
  return {.sp = sp, .dp = dp, .sp_mesh = std::move(sizes), .strict = true, .ring = true};
}

// The same with tokens in zigzag order.
shard::PlanOptions zigzag(std::map<std::string, int64_t> sizes, int64_t dp = 1) {
  shard::PlanOptions options = ring(std::move(sizes), dp);
  options.zigzag = true;
  return options;
}

// Of the first attention.
Ring ring_of(const SpmdProgram& program) {
  const auto node = std::ranges::find_if(program.instructions, [&](const Instruction& instruction) {
    const auto* compute = std::get_if<Compute>(&instruction);
    return compute != nullptr && program.plan->is_on_ring(compute->node);
  });
  return Ring(program, std::get<Compute>(*node));
}

class RingAttention : public testing::TestWithParam<Case> {
 protected:
  RingAttention()
      : graph(build_layer(GetParam().layer)),
        plan(shard::make_plan(graph, roles_of(graph), GetParam().mesh)),
        program(build_program(plan)),
        feeds(feeds_of(graph, GetParam().layer)) {}

  // 16-bit sums round at other places.
  double tolerance() const { return GetParam().layer.dtype == DataType::kFloat32 ? 1e-5 : 2e-2; }

  Graph graph;
  shard::Plan plan;
  SpmdProgram program;
  test::Tensors feeds;
};

TEST_P(RingAttention, OfAllRanksInOneGraphEqualsWhole) {
  ASSERT_TRUE(plan.has_ring());
  EXPECT_TRUE(plan.ring_refusals.empty());
  EXPECT_EQ(ring_of(program).is_zigzag(), GetParam().mesh.zigzag);
  test::expect_close(test::run_graph(emulate(program), feeds), test::run_graph(graph, feeds),
                     tolerance());
}

TEST_P(RingAttention, OfRanksThatExchangeBlocksEqualsWholeAlsoBesideComputation) {
  const test::Tensors whole = test::run_graph(graph, feeds);
  for (const bool overlap : {false, true}) {
    const executor::RunResult run = run_program(program, feeds, overlap);
    for (const executor::RankResult& rank : run.ranks) {
      SCOPED_TRACE(fmt::format("rank {}, overlap {}", rank.rank, overlap));
      test::expect_close(rank.outputs, whole, tolerance());
    }
  }
}

// On a device whose attention keeps a row's maximum and sum as one number (docs/attention.md).
TEST_P(RingAttention, OnDevicesEqualsWholeAlsoWithJointStatistics) {
  const auto backend =
      std::make_shared<test::EmulatedBackend>(test::EmulatedOptions{.joint_statistics = true});
  const test::Tensors whole = test::run_graph(graph, feeds);
  for (const executor::RankResult& rank : run_program(program, feeds, false, backend).ranks) {
    test::expect_close(rank.outputs, whole, tolerance());
  }
}

TEST_P(RingAttention, SendsTheBytesThatAreListed) {
  std::map<std::string, int64_t> most;  // by node
  for (const executor::RankResult& rank : run_program(program, feeds).ranks) {
    for (const executor::CollectiveRecord& record : rank.collectives) {
      int64_t& bytes = most[record.node];
      bytes = std::max(bytes, record.bytes_sent);
    }
  }
  for (const CollectiveRecord& record : list_collectives(program)) {
    EXPECT_EQ(most.at(record.node), record.bytes_per_rank) << record.node;
  }
}

TEST_P(RingAttention, IsTheSameWhenItIsRecomputed) {
  const test::Tensors whole = test::run_graph(graph, feeds);
  const SpmdProgram recomputed =
      apply_recompute(program, plan_recompute(program, RecomputePolicy::kFull));
  const executor::RunResult run = run_program(recomputed, feeds);
  test::expect_close(run.ranks.back().outputs, whole, tolerance());
}

TEST_P(RingAttention, RanksAgreeOnWhatTheyExchangeAndGatherNothing) {
  std::vector<std::string> listed;
  for (const CollectiveRecord& record : list_collectives(program)) {
    listed.push_back(record.node);
    // Over groups of heads keys are gathered as without a ring, block by block.
    const bool whole =
        record.kind == StepKind::kAllGather || record.kind == StepKind::kReduceScatter;
    EXPECT_FALSE(whole && record.mesh_axes.front() == "r") << record.node;
  }
  for (int64_t rank = 0; rank < plan.mesh.size(); ++rank) {
    const Graph local = emit_rank(program, rank);
    std::vector<std::string> nodes;
    for (const ir::Node& node : local.nodes()) {
      if (ir::is_collective(node)) nodes.push_back(node.name);
    }
    EXPECT_EQ(nodes, listed) << "rank " << rank;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Meshes, RingAttention,
    testing::Values(Case{"two", {}, ring({{"r", 2}})}, Case{"four", {}, ring({{"r", 4}})},
                    Case{"ragged_over_five", {}, ring({{"r", 5}})},
                    Case{"one_position_each", {.sequence = 4}, ring({{"r", 4}})},
                    Case{"one_head", {.kv_heads = 1, .group = 1}, ring({{"r", 3}})},
                    Case{"beside_heads", {}, ring({{"r", 2}, {"u", 2}})},
                    Case{"beside_groups", {.group = 3}, ring({{"r", 2}, {"g", 3}})},
                    Case{"three_axes", {}, ring({{"r", 3}, {"g", 2}, {"u", 2}})},
                    Case{"batches", {}, ring({{"r", 2}, {"u", 2}}, 2)}),
    [](const auto& tested) { return tested.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Masks, RingAttention,
    testing::Values(
        Case{"none", {.causal = false}, ring({{"r", 4}})},
        Case{"window", {.window = 5}, ring({{"r", 4}})},
        Case{"window_of_one_block", {.sequence = 16, .window = 2}, ring({{"r", 4}})},
        Case{"run_time_ends", {.causal = false, .run_time_end = true}, ring({{"r", 4}})},
        Case{"key_mask", {.causal = false, .key_mask = true}, ring({{"r", 4}})},
        Case{"segments", {.segments = true}, ring({{"r", 4}})},
        Case{"key_bias", {.key_bias = true}, ring({{"r", 2}, {"u", 2}})},
        Case{"bias_that_hides_blocks", {.causal = false, .full_bias = true}, ring({{"r", 4}})},
        Case{"sink", {.sink = true}, ring({{"r", 4}})},
        Case{"sink_and_heads", {.window = 3, .sink = true}, ring({{"r", 2}, {"u", 2}})},
        Case{"softcap", {.softcap = 1.5F}, ring({{"r", 3}})},
        Case{"dropout", {.dropout = true}, ring({{"r", 4}})},
        Case{"dropout_beside_groups",
             {.group = 3, .dropout = true},
             ring({{"r", 2}, {"g", 3}, {"u", 2}}, 2)},
        Case{"rows_without_keys", {.key_mask = true, .dead_rows = "zero"}, ring({{"r", 4}})},
        Case{"rows_that_weigh_all_keys",
             {.key_mask = true, .dead_rows = "uniform"},
             ring({{"r", 4}})},
        Case{"rows_that_weigh_all_keys_with_gradients",
             {.key_mask = true, .dead_rows = "uniform", .dead_row_gradient = true},
             ring({{"r", 5}})},
        Case{"rows_that_weigh_all_keys_beside_heads",
             {.group = 3, .key_mask = true, .dead_rows = "uniform", .dead_row_gradient = true},
             ring({{"r", 2}, {"u", 2}, {"g", 3}}, 2)}),
    [](const auto& tested) { return tested.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Types, RingAttention,
    testing::Values(Case{"bfloat16", {.dtype = DataType::kBFloat16}, ring({{"r", 4}})},
                    Case{"float16", {.dtype = DataType::kFloat16}, ring({{"r", 4}})},
                    Case{"bfloat16_that_weighs_all_keys",
                         {.key_mask = true,
                          .dead_rows = "uniform",
                          .dead_row_gradient = true,
                          .dtype = DataType::kBFloat16},
                         ring({{"r", 4}})}),
    [](const auto& tested) { return tested.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Zigzag, RingAttention,
    testing::Values(
        Case{"zigzag_over_two", {}, zigzag({{"r", 2}})},
        Case{"zigzag_over_three", {}, zigzag({{"r", 3}})},
        Case{"zigzag_over_four", {}, zigzag({{"r", 4}})},
        Case{"zigzag_ragged_over_five", {.sequence = 23}, zigzag({{"r", 5}})},
        Case{"zigzag_beside_heads", {}, zigzag({{"r", 2}, {"u", 2}})},
        Case{"zigzag_on_three_axes", {}, zigzag({{"r", 3}, {"g", 2}, {"u", 2}})},
        Case{"zigzag_of_batches", {}, zigzag({{"r", 2}, {"u", 2}}, 2)},
        Case{"zigzag_long_window", {.sequence = 24, .window = 20}, zigzag({{"r", 4}})},
        Case{"zigzag_key_mask", {.key_mask = true, .dead_rows = "zero"}, zigzag({{"r", 4}})},
        Case{"zigzag_segments", {.segments = true}, zigzag({{"r", 4}})},
        Case{"zigzag_key_bias", {.key_bias = true}, zigzag({{"r", 2}, {"u", 2}})},
        Case{"zigzag_full_bias", {.full_bias = true, .sink = true}, zigzag({{"r", 4}})},
        Case{"zigzag_sink", {.sink = true}, zigzag({{"r", 4}})},
        Case{"zigzag_softcap", {.softcap = 1.5F}, zigzag({{"r", 3}})},
        Case{"zigzag_rows_that_weigh_all_keys",
             {.sequence = 29,
              .group = 3,
              .key_mask = true,
              .dead_rows = "uniform",
              .dead_row_gradient = true},
             zigzag({{"r", 4}, {"u", 2}, {"g", 3}}, 2)},
        Case{
            "zigzag_run_time_begins", {.sequence = 16, .run_time_begin = true}, zigzag({{"r", 4}})},
        Case{"zigzag_bfloat16", {.dtype = DataType::kBFloat16}, zigzag({{"r", 4}})}),
    [](const auto& tested) { return tested.param.name; });

// The error of a tensor's entries, as a root mean square relative to theirs.
double error_of(const ir::Tensor& got, const ir::Tensor& exact) {
  double difference = 0;
  double size = 0;
  for (int64_t k = 0; k < exact.num_elements(); ++k) {
    difference += std::pow(got.value_as_double(k) - exact.value_as_double(k), 2);
    size += std::pow(exact.value_as_double(k), 2);
  }
  return std::sqrt(difference / size);
}

// Sixteen blocks are summed in float32, so that 16 bits lose no more than they do in one piece.
TEST(RingAttentionPrecision, OfSixteenBitsIsThatOfTheWhole) {
  const Options narrow{.sequence = 64, .causal = false, .dtype = DataType::kBFloat16};
  Options wide = narrow;
  wide.dtype = DataType::kFloat32;
  const Graph graph = build_layer(narrow);
  const test::Tensors feeds = feeds_of(graph, narrow);
  test::Tensors wide_feeds;
  for (const auto& [name, tensor] : feeds) {
    ir::Tensor widened(ir::Type{DataType::kFloat32, tensor.shape()});
    for (int64_t k = 0; k < tensor.num_elements(); ++k) {
      widened.mutable_values<float>()[static_cast<size_t>(k)] =
          static_cast<float>(tensor.value_as_double(k));
    }
    wide_feeds.emplace(name, widened);
  }
  const test::Tensors exact = test::run_graph(build_layer(wide), wide_feeds);
  const test::Tensors whole = test::run_graph(graph, feeds);
  const shard::Plan plan = shard::make_plan(graph, roles_of(graph), ring({{"r", 16}}));
  const test::Tensors parts = run_program(build_program(plan), feeds).ranks[0].outputs;
  for (const char* name : {"wq_grad", "wk_grad", "wv_grad"}) {
    EXPECT_LT(error_of(parts.at(name), exact.at(name)),
              1.25 * error_of(whole.at(name), exact.at(name)))
        << name;
  }
}

Graph rank_graph(const Options& options, const shard::PlanOptions& mesh, int64_t rank) {
  const Graph graph = build_layer(options);
  const shard::Plan plan = shard::make_plan(graph, roles_of(graph), mesh);
  return emit_rank(build_program(plan), rank);
}

size_t count_attentions(const Graph& graph) {
  return test::count_nodes(graph, "Attention", ir::kAutospDomain);
}

TEST(RingAttentionBlocks, ThatCausalMasksHideAreNotAttendedTo) {
  for (int64_t rank = 0; rank < 4; ++rank) {
    const Graph graph = rank_graph({}, ring({{"r", 4}}), rank);
    EXPECT_EQ(count_attentions(graph), static_cast<size_t>(rank) + 1);
    // Those before a rank's own are seen whole: they need no interval.
    for (const ir::Node& node : graph.nodes()) {
      if (node.op != "Attention" || node.domain != ir::kAutospDomain) continue;
      EXPECT_EQ(node.input(5).valid(), node.name.find("@block") == std::string::npos) << node.name;
    }
  }
}

TEST(RingAttentionBlocks, BeyondAWindowAreNotSent) {
  const Graph graph = build_layer({.sequence = 16, .window = 2});
  const shard::Plan plan = shard::make_plan(graph, roles_of(graph), ring({{"r", 4}}));
  const SpmdProgram program = build_program(plan);
  int64_t key_and_value = 0;
  for (const CollectiveRecord& record : list_collectives(program)) {
    if (record.purpose != Purpose::kReshard) continue;
    ++key_and_value;
    EXPECT_EQ(record.bytes_per_rank, kBatch * 2 * 4 * kWidth * 4) << record.node;  // a block
  }
  // One step in either direction, and the gradients' way home.
  EXPECT_EQ(key_and_value, 2 + 2 + 2);
  EXPECT_EQ(count_attentions(emit_rank(program, 0)), 1U);
  EXPECT_EQ(count_attentions(emit_rank(program, 3)), 2U);
}

// A causal block is of no use to the members before its owner: it stops at the last one.
TEST(RingAttentionBlocks, GoNoFurtherThanTheyAreSeen) {
  const Graph graph = build_layer({.sequence = 16});
  const shard::Plan plan = shard::make_plan(graph, roles_of(graph), ring({{"r", 4}}));
  const SpmdProgram program = build_program(plan);
  const Ring around = ring_of(program);
  EXPECT_EQ(around.schedule().steps(), 4U);
  int64_t sent = 0;
  for (const RingTransfer& transfer : around.transfers()) {
    for (int64_t rank = 0; rank < 4; ++rank) sent += around.bytes_sent(transfer, rank);
  }
  const int64_t block = kBatch * 2 * 4 * kWidth * 4;
  EXPECT_EQ(sent, block * 2 * (3 + 2 + 1));
}

// Forward and backward pass attend alike, and so does what is made of the program.
TEST(RingAttentionBlocks, AreOfOneSchedule) {
  const Graph graph = build_layer({.sequence = 16});
  const shard::Plan plan = shard::make_plan(graph, roles_of(graph), ring({{"r", 4}}));
  const SpmdProgram program = build_program(plan);
  std::set<const RingSchedule*> schedules;
  int rings = 0;
  const RecomputePlan nothing{.recomputed = std::vector<bool>(program.instructions.size())};
  for (const SpmdProgram& same : {program, apply_recompute(program, nothing)}) {
    for (const Instruction& instruction : same.instructions) {
      const auto* compute = std::get_if<Compute>(&instruction);
      if (compute == nullptr || !plan.is_on_ring(compute->node)) continue;
      schedules.insert(&Ring(same, *compute).schedule());
      ++rings;
    }
  }
  EXPECT_EQ(rings, 4);
  EXPECT_EQ(schedules.size(), 1U);
}

// Multiplications of scores and weights on a rank, by what it sees.
double attention_flops(const Graph& graph) {
  double flops = 0;
  for (const ir::Node& node : graph.nodes()) {
    if (node.domain != ir::kAutospDomain || !node.op.starts_with("Attention")) continue;
    std::vector<ir::Type> operands;
    for (ValueId operand : node.inputs)
      operands.push_back(operand ? graph.type(operand) : ir::Type());
    std::vector<ir::Type> results;
    for (ValueId result : node.outputs) results.push_back(result ? graph.type(result) : ir::Type());
    flops +=
        cost::operator_cost(node, operands, results, cost::visible_fraction(graph, node)).flops;
  }
  return flops;
}

// Of causal attention the last of four blocks is 7 / 16 of the work, one in zigzag order a quarter.
TEST(RingAttentionZigzag, GivesAllMembersAsMuch) {
  const Options layer{.sequence = 64};
  const Graph graph = build_layer(layer);
  const shard::Plan plan = shard::make_plan(graph, roles_of(graph), zigzag({{"r", 4}}));
  const SpmdProgram program = build_program(plan);
  std::vector<double> work;
  for (int64_t rank = 0; rank < 4; ++rank)
    work.push_back(attention_flops(emit_rank(program, rank)));
  EXPECT_LT(std::ranges::max(work), 1.001 * std::ranges::min(work));
  const double last = attention_flops(rank_graph(layer, ring({{"r", 4}}), 3));
  EXPECT_NEAR(last / work[0], 7.0 / 4, 0.05);
}

TEST(RingAttentionZigzag, LeavesBlocksWhereNothingIsWonOrNumbersMustFollow) {
  struct Kept {
    Options layer;
    const char* why;
  };
  for (const Kept& kept : {Kept{{.causal = false}, "no causal mask"},
                           Kept{{.sequence = 16, .window = 2}, "would not save"},
                           Kept{{.causal = false, .run_time_end = true}, "no causal mask"},
                           Kept{{.dropout = true}, "dropped at random"}}) {
    const Graph graph = build_layer(kept.layer);
    const shard::Plan plan = shard::make_plan(graph, roles_of(graph), zigzag({{"r", 4}}));
    const SpmdProgram program = build_program(plan);
    EXPECT_FALSE(ring_of(program).is_zigzag());
    EXPECT_NE(ring_of(program).schedule().why_in_blocks().find(kept.why), std::string::npos)
        << ring_of(program).schedule().why_in_blocks();
    const test::Tensors feeds = feeds_of(graph, kept.layer);
    test::expect_close(test::run_graph(emulate(program), feeds), test::run_graph(graph, feeds));
  }
}

// Every position is attended for once, by the member that gets it, under all divisions.
TEST(RingAttentionZigzag, DealsEveryPositionOnce) {
  for (size_t members = 2; members < 9; ++members) {
    for (int64_t extent = static_cast<int64_t>(members); extent < 40; ++extent) {
      const shard::Cuts cuts = shard::even_cuts(extent, static_cast<int64_t>(members));
      std::vector<shard::Interval> blocks;
      for (size_t m = 0; m < members; ++m) blocks.push_back({cuts[m], cuts[m + 1]});
      const TokenOrder order = TokenOrder::in_zigzag(blocks);
      std::vector<int> attended(static_cast<size_t>(extent), 0);
      for (size_t member = 0; member < members; ++member) {
        ASSERT_GT(count(order.of(member)), 0);
        std::vector<int64_t> positions(static_cast<size_t>(count(order.of(member))), -1);
        for (size_t holder = 0; holder < members; ++holder) {
          const auto [in_block, in_order] = order.share(holder, member);
          for (int64_t k = 0; k < in_block.extent(); ++k) {
            const int64_t position = blocks[holder].begin + in_block.begin + k;
            positions.at(static_cast<size_t>(in_order.begin + k)) = position;
            ++attended.at(static_cast<size_t>(position));
          }
        }
        EXPECT_TRUE(std::ranges::is_sorted(positions) && positions.front() >= 0);
        EXPECT_EQ(count_below(order.of(member), positions.back()), std::ssize(positions) - 1);
      }
      EXPECT_EQ(std::ranges::count(attended, 1), extent);
    }
  }
}

// Whether the node, or what it depends on, is attention.
bool depends_on_attention(const Graph& graph, const ir::Node& node) {
  if (node.op.starts_with("Attention")) return true;
  return std::ranges::any_of(node.inputs, [&](ValueId input) {
    const ir::Node* producer = input ? graph.producer(input) : nullptr;
    return producer != nullptr && depends_on_attention(graph, *producer);
  });
}

TEST(RingAttentionBlocks, AreUnderWayBesideAttention) {
  const Graph graph = rank_graph({.causal = false}, ring({{"r", 4}}), 1);
  std::vector<std::string> order;
  for (const ir::Node& node : graph.nodes()) {
    if (node.op == "Attention") order.emplace_back("attention");
    if (node.name.find("@ring-key") == std::string::npos) continue;
    EXPECT_FALSE(depends_on_attention(graph, node)) << node.name;
    if (node.phase == "forward") order.emplace_back("send");
  }
  const std::vector<std::string> expected = {"send", "attention", "send",     "attention",
                                             "send", "attention", "attention"};
  EXPECT_EQ(order, expected);
}

TEST(RingAttentionRefusals, NameTheReason) {
  for (const Options& options :
       {Options{.key_mask = true, .dead_rows = "unmasked"},
        Options{.key_mask = true, .dead_rows = "uniform", .dropout = true},
        Options{
            .key_mask = true, .softcap = 1, .dead_rows = "uniform", .dead_row_gradient = true}}) {
    const Graph graph = build_layer(options);
    const shard::Plan plan = shard::make_plan(graph, roles_of(graph), ring({{"r", 4}}));
    EXPECT_FALSE(plan.has_ring());
    ASSERT_EQ(plan.ring_refusals.size(), 2U);  // forward and backward
    EXPECT_NE(plan.ring_refusals[0].reason.find(options.dead_rows), std::string::npos);
    const ValueId output = graph.node(plan.ring_refusals[0].node).outputs[0];
    EXPECT_NE(shard::explain(plan, output).find("no ring, since rows"), std::string::npos);
    const test::Tensors feeds = feeds_of(graph, {.key_mask = true});
    test::expect_close(test::run_graph(emulate(build_program(plan)), feeds),
                       test::run_graph(graph, feeds));
  }
}

// What known intervals and sinks show of rows counts, not what rows without a key would do.
TEST(RingAttentionRefusals, AreNoneWhereEveryRowSeesAKey) {
  // In a block, rows may well see none.
  for (const Options& options : {Options{.window = 2, .dead_rows = "uniform"},
                                 Options{.key_mask = true, .sink = true, .dead_rows = "nan"}}) {
    const Graph graph = build_layer(options);
    const shard::Plan plan = shard::make_plan(graph, roles_of(graph), ring({{"r", 4}}));
    EXPECT_TRUE(plan.has_ring());
    const test::Tensors feeds = feeds_of(graph, options);
    test::expect_close(test::run_graph(emulate(build_program(plan)), feeds),
                       test::run_graph(graph, feeds));
  }
}

}  // namespace
}  // namespace autosp::transforms

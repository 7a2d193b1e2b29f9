// Attention layers written out by hand: what is fused, what it is found to be, and what is refused.
#include "transforms/fuse_attention/fuse_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/attention_layers.h"
#include "support/run_graph.h"
#include "transforms/pipeline.h"

namespace autosp::transforms {
namespace {

using ir::Graph;
using test::attention_layer;
using test::LayerMask;
using test::LayerOptions;
using test::run_graph;
using testing::HasSubstr;

struct Fusion {
  Graph before;
  Graph after;
  std::vector<AttentionRegion> regions;
};

Fusion fuse(const Graph& graph) {
  Fusion fusion{.before = run_passes(graph), .after = {}, .regions = {}};
  fusion.after = run_passes(
      graph, {.fuse_attention = true, .context = {.roles = {}, .attention = &fusion.regions}});
  return fusion;
}

void expect_equal(const Fusion& fusion, const test::Tensors& feeds) {
  test::expect_close(run_graph(fusion.after, feeds), run_graph(fusion.before, feeds), 1e-5);
}

// Fused, equal on random feeds, and with the mask that is expected.
AttentionRegion expect_fused(const LayerOptions& options, const std::string& mask) {
  const Fusion fusion = fuse(attention_layer(options));
  EXPECT_EQ(fusion.regions.size(), 1U);
  if (fusion.regions.size() != 1) return {};
  const AttentionRegion& region = fusion.regions[0];
  EXPECT_TRUE(region.fused) << region.reason;
  EXPECT_EQ(region.mask, mask);
  EXPECT_EQ(region.kv_heads, options.kv_heads);
  EXPECT_EQ(region.heads, options.kv_heads * options.groups);
  EXPECT_EQ(test::count_nodes(fusion.after, "AttentionGrad", "autosp"), 1U);
  EXPECT_EQ(test::count_nodes(fusion.after, "Softmax"), 0U);
  for (unsigned seed = 1; seed <= 3; ++seed) {
    expect_equal(fusion, test::random_feeds(fusion.before, {.seed = seed}));
  }
  return region;
}

void expect_refused(const LayerOptions& options, const std::string& reason) {
  const Fusion fusion = fuse(attention_layer(options));
  ASSERT_FALSE(fusion.regions.empty());
  for (const AttentionRegion& region : fusion.regions) {
    EXPECT_FALSE(region.fused);
    EXPECT_THAT(region.reason, HasSubstr(reason));
  }
  EXPECT_EQ(test::count_nodes(fusion.after, "Attention", "autosp"), 0U);
}

test::Tensors feeds_with_mask(const Graph& graph, const std::function<bool(int64_t)>& valid) {
  test::Tensors feeds = test::random_feeds(graph);
  ir::Tensor mask(feeds.at("attention_mask").type());
  for (int64_t k = 0; k < mask.num_elements(); ++k) {
    mask.mutable_values<bool>()[static_cast<size_t>(k)] = valid(k);
  }
  feeds["attention_mask"] = mask;
  return feeds;
}

TEST(FuseAttention, FindsHeadsAndScale) {
  const AttentionRegion region = expect_fused({.kv_heads = 2, .groups = 3}, "causal");
  EXPECT_NEAR(region.scale, 1 / std::sqrt(3.0), 1e-7);
  EXPECT_EQ(region.softcap, 0);
  EXPECT_EQ(region.dead_rows, "none");
  EXPECT_TRUE(region.backward);
}

TEST(FuseAttention, TakesEveryShapeOfHeads) {
  expect_fused({.kv_heads = 1, .groups = 1}, "causal");
  expect_fused({.kv_heads = 1, .groups = 4}, "causal");
  expect_fused({.kv_heads = 4, .groups = 1, .width = 1}, "causal");
  expect_fused({.batch = 1, .kv_heads = 3, .groups = 2}, "causal");
  expect_fused({.sequence = 5, .kv_heads = 5, .groups = 5, .width = 5}, "causal");
}

TEST(FuseAttention, KeysThatAreValuesStayKeys) {
  expect_fused({.key_is_value = true}, "causal");
  expect_fused({.groups = 1, .mask = LayerMask::kNone, .key_is_value = true}, "none");
}

TEST(FuseAttention, QueriesThatAreKeysStayQueries) {
  expect_fused({.groups = 1, .query_is_key = true}, "causal");
  expect_fused(
      {.groups = 1, .mask = LayerMask::kSegments, .key_is_value = true, .query_is_key = true},
      "causal, segments");
}

TEST(FuseAttention, GradientsMayDependOnTheOutput) {
  expect_fused({.squared_loss = true}, "causal");
}

TEST(FuseAttention, FindsTheSoftcap) {
  const AttentionRegion region = expect_fused({.softcap = 0.75F}, "causal");
  EXPECT_EQ(region.softcap, 0.75);
  EXPECT_NEAR(region.scale, 1 / std::sqrt(3.0), 1e-7);
}

TEST(FuseAttention, NamesMasks) {
  expect_fused({.mask = LayerMask::kNone}, "none");
  expect_fused({.mask = LayerMask::kWindow}, "causal, window 3");
  expect_fused({.mask = LayerMask::kSegments}, "causal, segments");
  expect_fused({.mask = LayerMask::kDistances}, "causal, bias vector");
  expect_fused({.mask = LayerMask::kPositions}, "positions");
}

// A mask over two sequences is 2^34 entries here: nothing of that size may be formed on the way.
TEST(FuseAttention, LongSequencesCostNothingPerPair) {
  for (const LayerMask mask : {LayerMask::kCausal, LayerMask::kWindow, LayerMask::kSegments,
                               LayerMask::kDistances, LayerMask::kLeftPadding}) {
    const Fusion fusion = fuse(attention_layer({.sequence = 131072, .mask = mask}));
    ASSERT_EQ(fusion.regions.size(), 1U);
    EXPECT_TRUE(fusion.regions[0].fused) << fusion.regions[0].reason;
    for (const ir::Value& value : fusion.after.values()) {
      EXPECT_LT(value.type.num_elements(), int64_t{131072} * 64) << value.name;
    }
  }
}

// Rows of left padding see no key, and -FLT_MAX added to all their scores makes them uniform over
// all keys, future ones included.
TEST(FuseAttention, RowsOfLeftPaddingStayUniform) {
  const LayerOptions options{.mask = LayerMask::kLeftPadding};
  const AttentionRegion region = expect_fused(options, "causal, key mask");
  EXPECT_EQ(region.dead_rows, "uniform");
  const Fusion fusion = fuse(attention_layer(options));
  expect_equal(fusion, feeds_with_mask(fusion.before, [](int64_t k) { return k >= 5; }));
  expect_equal(fusion, feeds_with_mask(fusion.before, [](int64_t k) { return k >= 12; }));
}

TEST(FuseAttention, RowsOfASafeSoftmaxStayZero) {
  const LayerOptions options{.mask = LayerMask::kZeroDeadRows};
  const AttentionRegion region = expect_fused(options, "key mask");
  EXPECT_EQ(region.dead_rows, "zero");
  const Fusion fusion = fuse(attention_layer(options));
  expect_equal(fusion, feeds_with_mask(fusion.before, [](int64_t k) { return k >= 12; }));
}

TEST(FuseAttention, RefusesWhatIsNoAttention) {
  expect_refused({.sigmoid = true}, "nothing normalises");
  expect_refused({.mask = LayerMask::kNone, .clipped_scores = true}, "not by a softcap");
  expect_refused({.gradient_forgets_scale = true}, "key_gradient differs");
}

TEST(FuseAttention, RefusesToHideWeightsThatAreRead) {
  expect_refused({.weights_are_output = true}, "is an output of the graph");
  expect_refused({.weights_in_loss = true}, "is also read by");
}

// To the numbers, a softmax over queries is an attention with values and gradients exchanged.
TEST(FuseAttention, RefusesASoftmaxOverQueries) {
  expect_refused(
      {.groups = 1, .mask = LayerMask::kNone, .squared_loss = true, .softmax_over_queries = true},
      "depends on its result");
}

TEST(FuseAttention, SaysWhatItFound) {
  const Fusion taken = fuse(attention_layer({}));
  EXPECT_THAT(taken.regions.at(0).to_string(),
              HasSubstr("forward and backward, 4 heads over 2 KV heads, 12 x 12 positions, "
                        "scale 0.57735, mask: causal"));
  const Fusion refused = fuse(attention_layer({.sigmoid = true}));
  EXPECT_THAT(refused.regions.at(0).to_string(), HasSubstr("stays decomposed: nothing normalises"));
}

}  // namespace
}  // namespace autosp::transforms

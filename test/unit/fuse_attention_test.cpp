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

void expect_equal(const Fusion& fusion, const test::Tensors& feeds, double tolerance = 1e-5) {
  test::expect_close(run_graph(fusion.after, feeds), run_graph(fusion.before, feeds), tolerance);
}

double tolerance_of(ir::DataType dtype) {
  switch (dtype) {
    case ir::DataType::kBFloat16:
      return 0.05;
    case ir::DataType::kFloat16:
      return 0.01;
    case ir::DataType::kFloat64:
      return 1e-12;
    default:
      return 1e-5;
  }
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
    expect_equal(fusion, test::random_feeds(fusion.before, {.seed = seed}),
                 tolerance_of(options.dtype));
  }
  return region;
}

// Refused, and equal all the same.
void expect_refused(const LayerOptions& options, const std::string& reason) {
  const Fusion fusion = fuse(attention_layer(options));
  expect_equal(fusion, test::random_feeds(fusion.before), tolerance_of(options.dtype));
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

// The same where random masks would leave rows without a key.
void expect_fused_where(const LayerOptions& options, const std::string& mask,
                        const std::function<bool(int64_t)>& valid) {
  const Fusion fusion = fuse(attention_layer(options));
  ASSERT_EQ(fusion.regions.size(), 1U);
  EXPECT_TRUE(fusion.regions[0].fused) << fusion.regions[0].reason;
  EXPECT_EQ(fusion.regions[0].mask, mask);
  EXPECT_EQ(test::count_nodes(fusion.after, "Softmax"), 0U);
  expect_equal(fusion, feeds_with_mask(fusion.before, valid), tolerance_of(options.dtype));
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

TEST(FuseAttention, ScalesPerHeadGoToTheQueries) {
  using test::LayerTemperature;
  for (const LayerTemperature temperature :
       {LayerTemperature::kTimes, LayerTemperature::kDivided}) {
    expect_fused({.temperature = temperature}, "causal");
    expect_fused({.groups = 1, .mask = LayerMask::kLeftPadding, .temperature = temperature},
                 "causal, key mask");
    expect_fused({.batch = 1, .dtype = ir::DataType::kFloat64, .temperature = temperature},
                 "causal");
    expect_fused(
        {.dtype = ir::DataType::kBFloat16, .temperature = temperature, .squared_loss = true},
        "causal");
    expect_fused({.temperature = temperature, .dropout = test::LayerDropout::kChosen}, "causal");
  }
}

TEST(FuseAttention, RefusesScalesThatItCannotSay) {
  using test::LayerTemperature;
  expect_refused({.temperature = LayerTemperature::kForgotten}, "the scale_gradient differs");
  expect_refused({.temperature = LayerTemperature::kOfKeys}, "no setting of its masks");
}

// Weights are dropped by place, as the graph's own draws drop them.
// As in SASRec: weights of queries that are padding become 0.
TEST(FuseAttention, FactorsOfRowsGoToTheOutput) {
  using test::LayerRows;
  for (const LayerRows rows : {LayerRows::kMultiplied, LayerRows::kChosen}) {
    expect_fused({.rows = rows}, "causal, factor per query");
    expect_fused({.dtype = ir::DataType::kFloat64, .rows = rows, .squared_loss = true},
                 "causal, factor per query");
    expect_fused({.mask = LayerMask::kLeftPadding, .rows = rows},
                 "causal, key mask, factor per query");
    expect_fused({.dtype = ir::DataType::kBFloat16, .rows = rows}, "causal, factor per query");
    expect_fused({.dropout = test::LayerDropout::kChosen, .rows = rows},
                 "causal, factor per query");
  }
  expect_fused({.rows = LayerRows::kMultiplied, .sink = true}, "causal, sink, factor per query");
  expect_refused({.rows = LayerRows::kForgotten}, "gradient differs");
}

// Rows that masks of the scores hide are uniform, and then 0.
TEST(FuseAttention, FactorsOfRowsMeetRowsWithoutAKey) {
  for (const test::LayerRows rows : {test::LayerRows::kMultiplied, test::LayerRows::kChosen}) {
    const LayerOptions options{.mask = LayerMask::kLeftPadding, .rows = rows};
    expect_fused_where(options, "causal, key mask, factor per query",
                       [](int64_t k) { return k >= 5; });
    expect_fused_where(options, "causal, key mask, factor per query",
                       [](int64_t k) { return k >= 12; });
  }
}

TEST(FuseAttention, DropsTheSameWeights) {
  using test::LayerDropout;
  for (const LayerDropout dropout :
       {LayerDropout::kChosen, LayerDropout::kMultiplied, LayerDropout::kTransposed}) {
    for (const LayerMask mask : {LayerMask::kCausal, LayerMask::kNone, LayerMask::kLeftPadding}) {
      SCOPED_TRACE(
          fmt::format("dropout {}, mask {}", static_cast<int>(dropout), static_cast<int>(mask)));
      const LayerOptions options{.mask = mask, .dropout = dropout};
      const Fusion fusion = fuse(attention_layer(options));
      ASSERT_EQ(fusion.regions.size(), 1U);
      EXPECT_TRUE(fusion.regions[0].fused) << fusion.regions[0].reason;
      EXPECT_NEAR(fusion.regions[0].dropout, 1.0 / 3, 1e-6);
      EXPECT_EQ(test::count_nodes(fusion.after, "RandomUniform", "autosp"), 0U);
      expect_equal(fusion, test::random_feeds(fusion.before));
    }
  }
  expect_fused({.groups = 1, .dropout = LayerDropout::kChosen}, "causal");
  expect_fused({.batch = 1, .kv_heads = 1, .groups = 3, .dropout = LayerDropout::kChosen},
               "causal");
  expect_fused({.softcap = 0.75F, .dropout = LayerDropout::kChosen}, "causal");
  expect_fused({.mask = LayerMask::kZeroDeadRows, .dropout = LayerDropout::kChosen}, "key mask");
  for (const ir::DataType dtype : {ir::DataType::kBFloat16, ir::DataType::kFloat16}) {
    // A sum of squares: others cancel in 16 bits.
    expect_fused({.dtype = dtype, .dropout = LayerDropout::kChosen, .squared_loss = true},
                 "causal");
  }
}

TEST(FuseAttention, RefusesDropoutThatItCannotSay) {
  using test::LayerDropout;
  expect_refused({.dropout = LayerDropout::kShared}, "drops several weights by one number");
  expect_refused({.dropout = LayerDropout::kDrawnAgain}, "drop weights each on its own");
  expect_refused({.dropout = LayerDropout::kHalved}, "differs from attention's");
  expect_refused({.dropout = LayerDropout::kBackTransposed}, "drop weights each on its own");
  for (const LayerDropout dropout :
       {LayerDropout::kWindow, LayerDropout::kWrapped, LayerDropout::kAcrossZero}) {
    expect_refused({.dropout = dropout}, "no choice of what is kept");
  }
  expect_refused({.dropout = LayerDropout::kChosen, .sink = true}, "differs from row to row");
}

TEST(FuseAttention, NamesMasks) {
  expect_fused({.mask = LayerMask::kNone}, "none");
  expect_fused({.mask = LayerMask::kWindow}, "causal, window 3");
  expect_fused({.mask = LayerMask::kBand}, "2 positions to both sides, key mask");
  expect_fused({.mask = LayerMask::kSegments}, "causal, segments");
  expect_fused({.mask = LayerMask::kDistances}, "causal, bias vector");
  expect_fused({.mask = LayerMask::kPositions}, "positions");
}

// slope * j in 16 bits says less than slope * (j - i).
TEST(FuseAttention, DistancesOf16BitsStayABiasOverPairs) {
  const LayerOptions options{.mask = LayerMask::kDistances, .dtype = ir::DataType::kBFloat16};
  const Fusion fusion = fuse(attention_layer(options));
  ASSERT_EQ(fusion.regions.size(), 1U);
  EXPECT_THAT(fusion.regions[0].mask, testing::HasSubstr("bias kept"));
}

// A mask over two sequences is 2^34 entries here: nothing of that size may be formed on the way.
TEST(FuseAttention, LongSequencesCostNothingPerPair) {
  for (const LayerMask mask :
       {LayerMask::kCausal, LayerMask::kWindow, LayerMask::kBand, LayerMask::kSegments,
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

// As in CodeGen: (scores + mask) / c.
TEST(FuseAttention, WhatIsScaledWithTheScoresIsABias) {
  for (const LayerMask mask :
       {LayerMask::kCausal, LayerMask::kWindow, LayerMask::kDistances, LayerMask::kLeftPadding}) {
    LayerOptions options{.mask = mask};
    const AttentionRegion first =
        expect_fused(options, fuse(attention_layer(options)).regions[0].mask);
    options.scaled_last = true;
    const AttentionRegion last = expect_fused(options, first.mask);
    EXPECT_NEAR(last.scale, first.scale, 1e-7);
  }
}

// A number that swallows scores is a mask, also where it is added as a vector: beside a causal mask
// it leaves rows without a key. Where scores are replaced by one and added to by the other, some of
// these rows' scores have a gradient and others have none.
TEST(FuseAttention, VectorsThatSwallowScoresAreMasks) {
  expect_refused({.mask = LayerMask::kPadding}, "rows without a key");
}

// A row may hold one number, the other, or the sum of both.
TEST(FuseAttention, TwoNumbersInOneSumAreNoMask) {
  expect_refused({.mask = LayerMask::kTwoSums}, "mix different masking numbers");
}

// What is added besides may be minus infinity itself: the guard says more than the mask.
TEST(FuseAttention, GuardsOfBiasesStay) {
  const Fusion fusion = fuse(attention_layer({.mask = LayerMask::kGuardedBias}));
  ASSERT_EQ(fusion.regions.size(), 1U);
  test::Tensors feeds = test::random_feeds(fusion.before);
  ir::Tensor bias(feeds.at("key_bias").type());
  for (int64_t k = 0; k < bias.num_elements(); ++k) {
    const bool hidden = k % 12 < 5;  // so that rows without a key are hidden by the guard alone
    bias.mutable_values<float>()[static_cast<size_t>(k)] =
        hidden ? -std::numeric_limits<float>::infinity() : 0.0F;
  }
  feeds["key_bias"] = bias;
  expect_equal(fusion, feeds);
}

// As in nn.MultiheadAttention: the keys' vector is repeated for the heads before masks are summed.
TEST(FuseAttention, VectorsThatAreRepeatedForHeadsAreKeyMasks) {
  const LayerOptions options{.mask = LayerMask::kRepeatedKeys};
  expect_fused_where(options, "causal, key mask", [](int64_t k) { return k % 12 < 9; });
}

// The operator's masks are the same for all heads.
TEST(FuseAttention, KeyMasksOfHeadsStayABias) {
  const LayerOptions options{.mask = LayerMask::kKeysOfHeads};
  expect_fused_where(options, "bias kept ('Where' hides other keys for each head)",
                     [](int64_t k) { return k % 12 == 0 || k % 5 != 0; });
}

// As in AlphaFold: products of tokens and linear layers of pairs are no scores, and the gradients
// of their weights no ends of the attention.
TEST(FuseAttention, BiasesMayBeComputedFromPairs) {
  for (const LayerMask mask : {LayerMask::kNone, LayerMask::kCausal, LayerMask::kLeftPadding}) {
    const LayerOptions options{.mask = mask, .pair_bias = true};
    const Fusion fusion = fuse(attention_layer(options));
    ASSERT_EQ(fusion.regions.size(), 1U);
    EXPECT_THAT(fusion.regions[0].mask, HasSubstr("bias kept ('MatMul"));
    expect_fused(options, fusion.regions[0].mask);
  }
}

// As in AlphaFold's attention along rows of an alignment, whose bias is the same for all rows.
TEST(FuseAttention, BiasesMayBeSharedBySomeHeads) {
  for (const int64_t kv_heads : {1, 2, 4}) {
    const LayerOptions options{.kv_heads = kv_heads,
                               .groups = 3,
                               .mask = LayerMask::kNone,
                               .pair_bias = true,
                               .shared_bias = true,
                               .squared_loss = true};
    const Fusion fusion = fuse(attention_layer(options));
    ASSERT_EQ(fusion.regions.size(), 1U);
    expect_fused(options, fusion.regions[0].mask);
  }
}

// An interval that ends at the later of two keys, one known and one not; no row is without a key.
TEST(FuseAttention, PrefixesBeforeCausalKeysAreIntervals) {
  for (const int64_t sequence : {12, 40}) {
    const AttentionRegion region = expect_fused({.sequence = sequence, .mask = LayerMask::kPrefix},
                                                "known intervals or positions");
    EXPECT_EQ(region.dead_rows, "none");
  }
}

// As in DeBERTa.
TEST(FuseAttention, ProductsOfBitsAreConjunctions) {
  expect_fused({.mask = LayerMask::kProducts, .squared_loss = true}, "query mask, key mask");
}

// A guard is computed over queries and keys: it goes with the mask that it guards.
TEST(FuseAttention, GuardsAgainstRowsWithoutAKeyGo) {
  const LayerOptions options{.mask = LayerMask::kGuarded};
  const AttentionRegion region = expect_fused(options, "causal, key mask");
  EXPECT_EQ(region.dead_rows, "zero");
  const Fusion fusion = fuse(attention_layer(options));
  EXPECT_EQ(test::count_nodes(fusion.after, "ReduceMax"), 0U);
  expect_equal(fusion, feeds_with_mask(fusion.before, [](int64_t k) { return k >= 5; }));
  expect_equal(fusion, feeds_with_mask(fusion.before, [](int64_t k) { return k >= 12; }));
}

// Rows that the two masks hide together give NaN, those that one of them hides zeros.
TEST(FuseAttention, GuardsOfOneMaskOfTwoAreNoAnswer) {
  const Fusion fusion = fuse(attention_layer({.mask = LayerMask::kHalfGuarded}));
  ASSERT_EQ(fusion.regions.size(), 1U);
  EXPECT_FALSE(fusion.regions[0].fused);
  EXPECT_THAT(fusion.regions[0].reason, HasSubstr("rows without a key"));
}

// Two ids of 32 bits make one of 64. Two of 64 bits make none, and the mask stays over pairs.
TEST(FuseAttention, PairsOfSegmentsBecomeOneOrStay) {
  expect_fused({.mask = LayerMask::kTwoSegments, .id_dtype = ir::DataType::kInt32}, "segments");
  const AttentionRegion region =
      expect_fused({.mask = LayerMask::kTwoSegments},
                   "bias kept ('segment_ids' and 'token_type_ids' have more bits than one id)");
  EXPECT_EQ(region.dead_rows, "none");
}

TEST(FuseAttention, MasksOverPairsAreAddedInEveryType) {
  for (const ir::DataType dtype :
       {ir::DataType::kFloat32, ir::DataType::kFloat64, ir::DataType::kBFloat16}) {
    const LayerOptions options{.mask = LayerMask::kPairs, .dtype = dtype};
    expect_fused(options, "bias kept ('attention_mask' is given over queries and keys)");
    const Fusion fusion = fuse(attention_layer(options));
    const auto dead = [](int64_t k) { return k / 12 != 5 && k % 3 != 1; };
    expect_equal(fusion, feeds_with_mask(fusion.before, dead), tolerance_of(dtype));
  }
  // The lowest float16 is not low enough to swallow a score that is computed in float32.
  expect_refused({.mask = LayerMask::kPairs, .dtype = ir::DataType::kFloat16}, "float16");
}

// A row whose keys up to the diagonal are all hidden is uniform over every key, not over these.
TEST(FuseAttention, MasksOverPairsTakeTheCausalOneIn) {
  const LayerOptions options{.mask = LayerMask::kPairsCausal};
  expect_fused(options,
               "bias kept ('attention_mask' is given over queries and keys), "
               "bias kept ('attention_mask' beside it is kept)");
  const Fusion fusion = fuse(attention_layer(options));
  expect_equal(fusion, feeds_with_mask(fusion.before, [](int64_t k) { return k % 12 >= 4; }));
}

TEST(FuseAttention, ComparisonsWithANumberAreMasksOverKeys) {
  for (const ir::DataType dtype : {ir::DataType::kInt64, ir::DataType::kInt32}) {
    const AttentionRegion region =
        expect_fused({.mask = LayerMask::kKeysOfOne, .id_dtype = dtype}, "key mask");
    EXPECT_EQ(region.dead_rows, "uniform");
  }
}

TEST(FuseAttention, BitsOfBatchEntriesAreMasksOverKeys) {
  const LayerOptions options{.mask = LayerMask::kBatchBits};
  expect_fused(options, "causal, key mask");
  const Fusion fusion = fuse(attention_layer(options));
  expect_equal(fusion, feeds_with_mask(fusion.before, [](int64_t k) { return k == 1; }));
}

TEST(FuseAttention, IntegersOfFloatsAreCut) {
  expect_fused({.mask = LayerMask::kTruncated}, "intervals");
}

TEST(FuseAttention, IntegersThatMayNotFitAreKept) {
  const Fusion fusion = fuse(attention_layer({.mask = LayerMask::kWrapped}));
  ASSERT_EQ(fusion.regions.size(), 1U);
  EXPECT_EQ(fusion.regions[0].mask.find("segments"), std::string::npos);
  for (unsigned seed = 1; seed <= 3; ++seed) {
    expect_equal(fusion, test::random_feeds(fusion.before, {.seed = seed}));
  }
}

// What is constant along a row changes its weights once a sink is in it.
TEST(FuseAttention, BiasesBesideASinkKeepTheirRows) {
  expect_fused({.sink = true}, "causal, sink");
  const Fusion fusion = fuse(attention_layer({.mask = LayerMask::kDistances, .sink = true}));
  ASSERT_EQ(fusion.regions.size(), 1U);
  for (unsigned seed = 1; seed <= 3; ++seed) {
    expect_equal(fusion, test::random_feeds(fusion.before, {.seed = seed}));
  }
}

// "Attention is off by one": every row also sees a logit 0 that carries no value.
TEST(FuseAttention, OneMoreInTheSumIsASinkThatIsKnown) {
  for (const test::LayerOneMore one_more :
       {test::LayerOneMore::kAdded, test::LayerOneMore::kPadded}) {
    expect_fused({.one_more = one_more}, "causal, sink");
    expect_fused({.mask = LayerMask::kNone, .one_more = one_more}, "sink");
    expect_fused({.softcap = 5, .one_more = one_more, .squared_loss = true}, "causal, sink");
    expect_fused_where({.mask = LayerMask::kLeftPadding, .one_more = one_more},
                       "causal, key mask, sink", [](int64_t k) { return k >= 5; });
  }
  expect_refused({.dropout = test::LayerDropout::kChosen, .one_more = test::LayerOneMore::kAdded},
                 "as beside a sink");
}

// Where each query sees its own key, a mask that is no vector hides by the number it adds.
TEST(FuseAttention, MasksThatAreNoVectorsStayABiasWhereRowsSeeThemselves) {
  const auto check = [](const LayerOptions& options, const std::string& why) {
    const Fusion fusion = fuse(attention_layer(options));
    ASSERT_EQ(fusion.regions.size(), 1U);
    EXPECT_TRUE(fusion.regions[0].fused) << fusion.regions[0].reason;
    EXPECT_THAT(fusion.regions[0].mask, HasSubstr(why));
    for (unsigned seed = 1; seed <= 3; ++seed) {
      expect_equal(fusion, test::random_feeds(fusion.before, {.seed = seed}),
                   tolerance_of(options.dtype));
    }
  };
  for (const ir::DataType dtype :
       {ir::DataType::kFloat32, ir::DataType::kFloat16, ir::DataType::kFloat64}) {
    check({.mask = LayerMask::kUnion, .dtype = dtype}, "is computed by Or");
    check({.mask = LayerMask::kStrided, .dtype = dtype}, "compares more than two vectors");
    check({.mask = LayerMask::kTimes, .dtype = dtype}, "not known before the run");
  }
  expect_refused({.mask = LayerMask::kStridedBefore}, "is no vector");
}

// Where a bias hides all keys that a row sees, and as much, the graph weighs hidden keys too.
TEST(FuseAttention, MasksBesideABiasThatHidesAsMuchAreNotReplaced) {
  expect_refused({.mask = LayerMask::kHiddenFloats}, "with a mask of the same size");
  expect_refused({.mask = LayerMask::kStridedFloats}, "with a mask of the same size");
}

// scores - 1e9 * hidden, as in XLNet.
TEST(FuseAttention, MasksThatAreTakenFromTheScoresAreMasks) {
  expect_fused({.mask = LayerMask::kLeftPadding, .subtracted = true}, "causal, key mask");
  expect_fused({.mask = LayerMask::kBand, .subtracted = true},
               "2 positions to both sides, key mask");
}

// Rows that see no key, where the mask is a number that the type's rounding swallows or does not.
TEST(FuseAttention, RowsWithoutAKeyRoundAsTheirTypeDoes) {
  const auto check = [](ir::DataType dtype, std::optional<double> number,
                        const std::string& dead_rows) {
    const LayerOptions options{
        .mask = LayerMask::kLeftPadding, .dtype = dtype, .masking_number = number};
    const AttentionRegion region = expect_fused(options, "causal, key mask");
    EXPECT_EQ(region.dead_rows, dead_rows);
    const Fusion fusion = fuse(attention_layer(options));
    const double tolerance = dead_rows == "unmasked" ? 1e-3 : tolerance_of(dtype);
    for (const int64_t first : {5, 12}) {
      expect_equal(fusion, feeds_with_mask(fusion.before, [&](int64_t k) { return k >= first; }),
                   tolerance);
    }
  };
  check(ir::DataType::kFloat16, std::nullopt, "uniform");
  check(ir::DataType::kBFloat16, -10000, "uniform");
  check(ir::DataType::kBFloat16, std::nullopt, "uniform");
  check(ir::DataType::kFloat32, -1e9, "uniform");
  check(ir::DataType::kFloat32, -10000, "unmasked");
  const auto refuse = [](ir::DataType dtype, double number) {
    expect_refused({.mask = LayerMask::kLeftPadding, .dtype = dtype, .masking_number = number},
                   "rows without a key depend on how");
  };
  refuse(ir::DataType::kFloat32, -1e6);
  refuse(ir::DataType::kFloat16, -10000);
}

// 1 / sqrt(3) is no float32.
TEST(FuseAttention, ScalesOfDoublesStayExact) {
  expect_fused({.dtype = ir::DataType::kFloat64}, "causal");
  expect_fused({.mask = LayerMask::kDistances, .dtype = ir::DataType::kFloat64},
               "causal, bias vector");
}

TEST(FuseAttention, RefusesWhatIsNoAttention) {
  expect_refused({.sigmoid = true}, "nothing normalises");
  expect_refused({.mask = LayerMask::kNone, .clipped_scores = true}, "not by a softcap");
  expect_refused({.gradient_forgets_scale = true}, "key_gradient differs");
}

TEST(FuseAttention, RefusesMixturesOfHeads) {
  const Fusion fusion = fuse(attention_layer({.mixes_heads = true}));
  ASSERT_EQ(fusion.regions.size(), 2U);
  EXPECT_THAT(fusion.regions[0].reason, HasSubstr("contracts scores into other scores"));
  EXPECT_THAT(fusion.regions[1].reason, HasSubstr("nothing normalises"));
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

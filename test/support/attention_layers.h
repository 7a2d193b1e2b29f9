// Training graphs of one attention layer, written out by hand in forward and backward.
#pragma once

#include <optional>
#include <string>

#include "ir/graph.h"

namespace autosp::test {

enum class LayerMask {
  kNone,
  kCausal,        // Where over a comparison of positions, replacing scores by -FLT_MAX
  kWindow,        // the last three keys, as a sum with -inf
  kLeftPadding,   // causal, and a run-time bool vector over keys, -FLT_MAX added
  kSegments,      // causal, and equal run-time segment ids
  kZeroDeadRows,  // run-time bool vector; rows without a key give zeros (safe softmax)
  kGuarded,       // causal, and a run-time bool vector, -inf added; rows that this hides give zeros
  kHalfGuarded,   // the same, but only rows that the bool vector hides by itself give zeros
  kDistances,     // causal, and a slope per head times the distance
  kPositions,     // keys up to a run-time position per query
  kTwoSums,       // causal and a run-time bool vector, each -1e9 added, summed first
  kGuardedBias,   // as kGuarded, but for run-time floats over keys in place of the bools
  kPadding,       // causal as kCausal, and a run-time bool vector, -FLT_MAX added as a vector
  kProducts,      // where the product of a run-time 0 or 1 per query and per key is not 0
  kTwoSegments,   // equal run-time segment_ids and equal run-time token_type_ids, -FLT_MAX added
  kPairs,         // a run-time bool per query and key, replacing scores by -FLT_MAX
  kPairsCausal,   // the same, then causal likewise
  kKeysOfOne,  // keys whose run-time segment id is 1, repeated over queries before the comparison
  kBatchBits,  // causal, and a run-time bool per batch entry
  kWrapped,    // equal bytes of run-time segment ids times 128, made bytes after they are repeated
  kBand,       // not those of which 2 < |j - i|, and a run-time bool vector, -FLT_MAX added
  kRepeatedKeys,   // causal, and a run-time bool vector made 0 or -inf and repeated for the heads
  kKeysOfHeads,    // causal, and a run-time bool per head and key, -inf added
  kPrefix,         // causal, or keys before a run-time position per batch entry
  kTruncated,      // keys from half the query's position on, made an integer after it is repeated
  kUnion,          // causal: the last three keys and the first two, replacing scores by -inf
  kStrided,        // causal: every third key back from the query's own, as kCausal
  kStridedBefore,  // the same, but for the query's own key
  kHiddenFloats,   // causal, replacing scores by -1e9, and (1 - run-time floats over keys) times it
  kStridedFloats,  // kStrided likewise
  kTimes,          // keys of the same run-time segment, run-time positions no later, as kCausal
};

// What joins a row's normalisation beside its keys.
enum class LayerOneMore {
  kNone,
  kAdded,   // exponentials over their sum and one
  kPadded,  // a column of zeros before the scores
};

// How weights are dropped at random, a third of them.
enum class LayerDropout {
  kNone,
  kChosen,          // Where over draw >= ratio, of weights divided by 1 - ratio
  kMultiplied,      // by draw < 1 - ratio as a number, and by 1 / (1 - ratio)
  kTransposed,      // as kChosen, drawn as [batch, sequence, heads, sequence]
  kShared,          // as kChosen, by one draw for all heads
  kDrawnAgain,      // as kChosen, and the backward pass has draws of its own
  kBackTransposed,  // as kChosen, and the backward pass reads it with queries for keys
  kWrapped,         // a third of them, chosen by a number that wraps in a byte
  kAcrossZero,      // a third of them, where a number that is made a bool is 0
  kWindow,          // as kChosen, but it is numbers near a half that are dropped
  kHalved,          // weights that are not kept are halved
};

// A trained number per head that scales the scores.
enum class LayerTemperature {
  kNone,
  kTimes,
  kDivided,
  kForgotten,  // as kTimes, and its gradient lacks the scale
  kOfKeys,     // one per head and key
};

// What a run-time bool per query, query_mask, does to the weights.
enum class LayerRows {
  kNone,
  kMultiplied,  // as a number
  kChosen,      // Where it is false, zeros
  kForgotten,   // as kMultiplied, and the backward pass lacks it
};

struct LayerOptions {
  int64_t batch = 2;
  int64_t sequence = 12;
  int64_t kv_heads = 2;
  int64_t groups = 2;  // query heads that share one KV head, by Expand
  int64_t width = 3;
  float softcap = 0;
  LayerMask mask = LayerMask::kCausal;
  ir::DataType dtype = ir::DataType::kFloat32;
  ir::DataType id_dtype = ir::DataType::kInt64;  // of segment and token type ids
  std::optional<double> masking_number;          // added by kLeftPadding; else the lowest of dtype
  LayerTemperature temperature = LayerTemperature::kNone;  // an input [heads, 1, 1]
  LayerDropout dropout = LayerDropout::kNone;
  LayerRows rows = LayerRows::kNone;
  bool sink = false;  // a run-time logit per head
  LayerOneMore one_more = LayerOneMore::kNone;
  bool subtracted = false;   // masks that are added, as something that is taken from the scores
  bool pair_bias = false;    // a trained linear layer of pairs, which are products of tokens
  bool shared_bias = false;  // it is of KV heads, and repeated for their query heads
  bool key_is_value = false;
  bool query_is_key = false;  // with groups 1
  bool scaled_last = false;   // what is added to the scores is scaled with them
  bool squared_loss = false;  // the sum of squares: the output's gradient depends on the output
  // What a fusion must not take for attention, or not replace.
  bool softmax_over_queries = false;
  bool sigmoid = false;
  bool weights_are_output = false;
  bool weights_in_loss = false;
  bool clipped_scores = false;
  bool mixes_heads = false;  // before the softmax
  bool gradient_forgets_scale = false;
};

// Data inputs: inputs_embeds [batch, sequence, 10], and where the mask asks for them attention_mask
// (bool; of pairs [batch, sequence, sequence], of a batch entry [batch, 1], of heads [batch, heads,
// 1, sequence]), segment_ids, token_type_ids, position_ids, all [batch, sequence]. Outputs: loss,
// and the gradients of wq, wk, wv.
ir::Graph attention_layer(const LayerOptions& options);

}  // namespace autosp::test

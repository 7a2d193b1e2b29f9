// One call of autosp::Attention or autosp::AttentionGrad (docs/attention.md), its sizes, attributes
// and masks read off: what the reference kernels and the device's kernels start from.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

#include "reference/draws.h"
#include "reference/kernels.h"

namespace autosp::reference {

// What a row that sees no key weighs its keys by.
enum class DeadRows : uint8_t { kNone, kUniform, kZero, kUnmasked, kNan };

// Which keys a query sees. A null pointer masks nothing; a stride of 0 is one mask for all batches.
struct AttentionMask {
  const int64_t* begin = nullptr;  // [batch, queries]: keys [begin, end)
  const int64_t* end = nullptr;
  const bool* key = nullptr;               // [batch, keys]
  const int64_t* query_segment = nullptr;  // [batch, queries]
  const int64_t* key_segment = nullptr;    // [batch, keys]
  int64_t begin_stride = 0;                // elements from one batch to the next
  int64_t end_stride = 0;
  int64_t key_stride = 0;
  int64_t query_segment_stride = 0;
  int64_t key_segment_stride = 0;
  int64_t num_keys = 0;

  struct Range {
    int64_t begin = 0;
    int64_t end = 0;  // no less than begin
  };
  // The interval alone, within [0, num_keys].
  Range range(int64_t batch, int64_t query) const {
    Range r{0, num_keys};
    if (begin != nullptr) r.begin = begin[batch * begin_stride + query];
    if (end != nullptr) r.end = end[batch * end_stride + query];
    r.begin = std::clamp<int64_t>(r.begin, 0, num_keys);
    r.end = std::clamp<int64_t>(r.end, r.begin, num_keys);
    return r;
  }
  // The other masks, for a key within the interval.
  bool unmasked(int64_t batch, int64_t query, int64_t k) const {
    if (key != nullptr && !key[batch * key_stride + k]) return false;
    return query_segment == nullptr || query_segment[batch * query_segment_stride + query] ==
                                           key_segment[batch * key_segment_stride + k];
  }
  bool intervals_only() const { return key == nullptr && query_segment == nullptr; }
  // Whether the query sees no key.
  bool is_dead(int64_t batch, int64_t query) const {
    const Range r = range(batch, query);
    if (intervals_only()) return r.begin == r.end;
    for (int64_t k = r.begin; k < r.end; ++k) {
      if (unmasked(batch, query, k)) return false;
    }
    return true;
  }
};

// The bias broadcasts to [batch, query heads, queries, keys]: a stride is 0 along an extent of 1.
struct AttentionBias {
  const void* data = nullptr;
  int64_t strides[4] = {};  // in elements
  int64_t at(int64_t batch, int64_t head, int64_t query, int64_t key) const {
    return batch * strides[0] + head * strides[1] + query * strides[2] + key * strides[3];
  }
};

// Weights dropped at random, by their place (docs/random.md). The weight of key j for query i,
// which the g-th query head of KV head k of batch b asks for, has number `at(b, k, g, i, j)` of a
// stream of draws. It is kept, and multiplied by `scale`, where from <= draw < below; else it is 0.
struct AttentionDropout {
  bool operator==(const AttentionDropout&) const = default;

  DrawKey key;
  int64_t offset = 0;
  std::array<int64_t, 5> strides{};
  float from = 0;
  float below = 1;
  float scale = 1;

  constexpr uint64_t at(int64_t b, int64_t k, int64_t g, int64_t i, int64_t j) const {
    return static_cast<uint64_t>(offset + b * strides[0] + k * strides[1] + g * strides[2] +
                                 i * strides[3] + j * strides[4]);
  }
  // What the weight is multiplied by.
  constexpr float factor(float draw) const { return from <= draw && draw < below ? scale : 0; }
};
// As the attributes dropout_* of a node have it; nullopt where nothing is dropped.
std::optional<AttentionDropout> attention_dropout(const ir::Attributes& attributes);
void set_attention_dropout(ir::Attributes& attributes, const AttentionDropout& dropout);

struct AttentionProblem {
  int64_t batch = 0;
  int64_t query_heads = 0;
  int64_t kv_heads = 0;
  int64_t group = 1;  // query heads per KV head
  int64_t queries = 0;
  int64_t keys = 0;
  int64_t width = 0;        // of queries and keys
  int64_t value_width = 0;  // of values and outputs
  float scale = 1;
  float softcap = 0;  // 0: none
  DeadRows dead_rows = DeadRows::kNone;
  bool dead_row_gradient = false;
  AttentionMask mask;
  AttentionBias bias;
  const void* sink = nullptr;  // [query_heads]
  std::optional<AttentionDropout> dropout;
  const int64_t* step = nullptr;  // of its draws; null: 0

  // Whether a row without a visible key needs care: a sink is always visible.
  bool is_dead(int64_t b, int64_t query) const { return sink == nullptr && mask.is_dead(b, query); }
};

// Positions of the operands.
struct AttentionOperands {
  size_t query = 0;
  size_t optional = 3;  // bias; the masks, the sink and the step follow
};
inline constexpr AttentionOperands kAttention{0, 3};
inline constexpr AttentionOperands kAttentionGrad{1, 7};

// Throws Error for an unknown value of dead_rows; shapes are inference's business.
AttentionProblem attention_problem(const Call& call, const AttentionOperands& operands);

}  // namespace autosp::reference

// What attention's kernels share: which nodes they take, and one call's operands on the device.
#pragma once

#include <algorithm>
#include <cmath>

#include "cuda/kernels/draw.h"
#include "cuda/kernels/map.h"
#include "reference/attention_problem.h"

namespace autosp::kernels {

using reference::AttentionDropout;
using reference::AttentionProblem;
using reference::DeadRows;

inline constexpr int kWidest = 256;  // of queries, keys and values
inline constexpr float kLowest = -3.402823466e+38F;

// What a kernel needs of the problem. Pointers are the device's.
template <typename T>
struct Inputs {
  int64_t batch, query_heads, kv_heads, group, queries, keys;
  int width, value_width;
  float scale, softcap;
  DeadRows dead_rows;
  bool dead_row_gradient;
  const int64_t* begin;
  const int64_t* end;
  const bool* key_mask;
  const int64_t* query_segment;
  const int64_t* key_segment;
  int64_t begin_stride, end_stride, key_stride, query_segment_stride, key_segment_stride;
  const T* bias;
  int64_t bias_strides[4];
  const T* sink;
  bool drops;
  AttentionDropout dropout;
  const int64_t* step;
  const T* query;
  const T* key;
  const T* value;
  bool packed;  // rows of all operands begin at multiples of 16 bytes

  Inputs(const executor::KernelCall& call, const AttentionProblem& p, size_t first)
      : batch(p.batch),
        query_heads(p.query_heads),
        kv_heads(p.kv_heads),
        group(p.group),
        queries(p.queries),
        keys(p.keys),
        width(static_cast<int>(p.width)),
        value_width(static_cast<int>(p.value_width)),
        scale(p.scale),
        softcap(p.softcap),
        dead_rows(p.dead_rows),
        dead_row_gradient(p.dead_row_gradient),
        begin(p.mask.begin),
        end(p.mask.end),
        key_mask(p.mask.key),
        query_segment(p.mask.query_segment),
        key_segment(p.mask.key_segment),
        begin_stride(p.mask.begin_stride),
        end_stride(p.mask.end_stride),
        key_stride(p.mask.key_stride),
        query_segment_stride(p.mask.query_segment_stride),
        key_segment_stride(p.mask.key_segment_stride),
        bias(static_cast<const T*>(p.bias.data)),
        bias_strides{p.bias.strides[0], p.bias.strides[1], p.bias.strides[2], p.bias.strides[3]},
        sink(static_cast<const T*>(p.sink)),
        drops(p.dropout.has_value()),
        dropout(p.dropout.value_or(AttentionDropout())),
        step(p.step),
        query(data<T>(call.call.operands[first])),
        key(data<T>(call.call.operands[first + 1])),
        value(data<T>(call.call.operands[first + 2])),
        packed(width % (16 / sizeof(T)) == 0 && value_width % (16 / sizeof(T)) == 0) {
    for (const void* operand : {static_cast<const void*>(query), static_cast<const void*>(key),
                                static_cast<const void*>(value)}) {
      packed = packed && aligned_for<T>(operand, 16 / sizeof(T));
    }
  }

  // A query's row of [batch, query heads, queries].
  struct Place {
    int64_t batch, head, query;
  };
  AUTOSP_DEVICE int64_t row(const Place& at) const {
    return (at.batch * query_heads + at.head) * queries + at.query;
  }
  // Of [batch, KV heads, keys].
  AUTOSP_DEVICE int64_t key_row(const Place& at, int64_t j) const {
    return (at.batch * kv_heads + at.head / group) * keys + j;
  }
  // Whether keys of the query's interval are hidden otherwise.
  AUTOSP_DEVICE bool unmasked(int64_t batch, int64_t i, int64_t j) const {
    if (key_mask != nullptr && !key_mask[batch * key_stride + j]) return false;
    return query_segment == nullptr || query_segment[batch * query_segment_stride + i] ==
                                           key_segment[batch * key_segment_stride + j];
  }
  // Of query . key: scaled and capped, before the bias.
  AUTOSP_DEVICE float capped(float product) const {
    const float score = scale * product;
    return softcap == 0 ? score : softcap * tanh(score / softcap);
  }
  AUTOSP_DEVICE float biased(const Place& at, int64_t j, float score) const {
    if (bias == nullptr) return score;
    return score + static_cast<float>(bias[at.batch * bias_strides[0] + at.head * bias_strides[1] +
                                           at.query * bias_strides[2] + j * bias_strides[3]]);
  }
  // What dropout multiplies a weight by.
  AUTOSP_DEVICE float kept(const Place& at, int64_t j) const {
    if (!drops) return 1;
    const uint64_t number = dropout.at(at.batch, at.head / group, at.head % group, at.query, j);
    const int64_t now = step == nullptr ? 0 : *step;
    return dropout.factor(draw(dropout.key.seed, dropout.key.stream, now, number));
  }
};

AUTOSP_DEVICE inline bool dead_rows_weigh(DeadRows kind) {
  return kind != DeadRows::kNone && kind != DeadRows::kZero;
}
// The weight of a key in a row that sees none, unless it is the softmax of all scores.
AUTOSP_DEVICE inline float dead_weight(DeadRows kind, int64_t keys) {
  if (kind == DeadRows::kUniform) return 1.0F / static_cast<float>(keys);
  return kind == DeadRows::kNan ? NAN : 0.0F;
}

// Kernels are compiled for the widest of both widths.
template <int kWidth>
using Width = std::integral_constant<int, kWidth>;
template <typename F>
void visit_widths(int64_t width, int64_t value_width, F&& f) {
  const int64_t widest = std::max(width, value_width);
  if (widest <= 64) return f(Width<64>{});
  if (widest <= 128) return f(Width<128>{});
  f(Width<kWidest>{});
}

using AttentionTypes = TypeList<float, Float16, BFloat16>;

inline bool fits(const ir::Graph& graph, const ir::Node& node, size_t query) {
  const ir::Type& q = graph.type(node.inputs[query]);
  const ir::Type& v = graph.type(node.inputs[query + 2]);
  if (!contains(AttentionTypes{}, q.dtype)) return false;
  if (q.shape[3] > kWidest || v.shape[3] > kWidest || q.shape[2] == 0 || v.shape[2] == 0) {
    return false;
  }
  return true;
}

// Whether the device has the shared memory that the kernel for the operands needs, which has been
// seen to fit() otherwise.
template <template <typename, int> typename Body>
bool has_shared_memory(const ir::Graph& graph, const ir::Node& node, size_t query) {
  const ir::Type& q = graph.type(node.inputs[query]);
  const ir::Type& v = graph.type(node.inputs[query + 2]);
  size_t bytes = 0;
  visit(AttentionTypes{}, q.dtype, [&]<typename T>(std::type_identity<T>) {
    visit_widths(q.shape[3], v.shape[3], [&]<int kWidth>(Width<kWidth>) {
      bytes = sizeof(typename Body<T, kWidth>::Shared);
    });
  });
  return bytes <= most_shared();
}

}  // namespace autosp::kernels

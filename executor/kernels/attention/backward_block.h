// One block of keys against all queries of one head that see it. See simd.h for how this is
// compiled.
//
//   P^T  = exp(S^T - max) / sum          dV += P^T dO
//   dS^T = P^T (V dO^T - delta) scale    dK += dS^T Q     dQ += dS K
#pragma once

#include "executor/kernels/attention/forward_block.h"

namespace autosp::executor::attention {
namespace {

struct BackwardScratch {
  float* weights;         // [kKeyBlock][kQueryBlock]
  float* score_gradient;  // likewise
  float* slopes;          // likewise: of the softcap
  float* key_gradient;    // [kKeyBlock][width]
  float* value_gradient;  // [kKeyBlock][value width]
  // Widened: [kKeyBlock] and [kQueryBlock] of their widths.
  float* keys;
  float* values;
  float* queries;
  float* output_gradients;
};

static_assert(kKeyBlock == kQueryBlock);

inline int64_t backward_scratch(const Problem& p) {
  const int64_t tiles = p.sizes.softcap != 0 ? 3 : 2;
  const int64_t rows = widens(p) ? 3 : 1;
  return kKeyBlock * (tiles * kQueryBlock + rows * (p.width + p.value_width));
}

AUTOSP_AI BackwardScratch carve_backward(const Problem& p, float* memory) {
  BackwardScratch s;
  s.weights = memory;
  s.score_gradient = s.weights + kKeyBlock * kQueryBlock;
  s.slopes = s.score_gradient + kKeyBlock * kQueryBlock;
  s.key_gradient = p.sizes.softcap != 0 ? s.slopes + kKeyBlock * kQueryBlock : s.slopes;
  s.value_gradient = s.key_gradient + kKeyBlock * p.width;
  s.keys = s.value_gradient + kKeyBlock * p.value_width;
  s.values = s.keys + kKeyBlock * p.width;
  s.queries = s.values + kKeyBlock * p.value_width;
  s.output_gradients = s.queries + kQueryBlock * p.width;
  return s;
}

inline void prepare(const Problem& p, const Head& head, int64_t query_block, float* memory) {
  const FlushDenormals flush;
  const BackwardScratch s = carve_backward(p, memory);
  const int64_t query = query_block * kQueryBlock;
  const int64_t count = query_count(p, query);
  const auto floats = [&](const Array& array, float* copy) {
    return floats_of(array, head.batch, head.head, query, count, copy);
  };
  const FloatRows queries = floats(p.query, s.queries);
  const FloatRows gradients = floats(p.output_gradient, s.output_gradients);
  const FloatRows outputs = floats(p.output, s.values);
  transpose(queries.data, queries.row, count, p.width, p.sizes.scale, head.query + query * p.width);
  transpose(gradients.data, gradients.row, count, p.value_width, 1,
            head.output_gradient + query * p.value_width);
  const int64_t row = (head.batch * p.sizes.query_heads + head.head) * p.sizes.queries + query;
  for (int64_t i = 0; i < kQueryBlock; ++i) {
    float max = 0;
    float inverse_sum = 0;
    float delta = 0;
    if (i < count) {
      const RowKind kind = p.rows.kind[head.batch * p.rows.queries + query + i];
      max = p.row_max[row + i];
      inverse_sum = 1 / p.row_sum[row + i];
      if (kind == RowKind::kEmpty) max = inverse_sum = 0;
      if (kind == RowKind::kUniform || kind == RowKind::kNan) {
        max = 0;
        inverse_sum = 1 / static_cast<float>(p.sizes.keys);
      }
      const float* a = gradients.data + i * gradients.row;
      const float* b = outputs.data + i * outputs.row;
      V sum = Simd::zero();
      for (int64_t e = 0; e < p.value_width; e += kWidth) {
        sum = Simd::fma(Simd::load(a + e), Simd::load(b + e), sum);
      }
      delta = Simd::sum(sum);
    }
    head.max[query + i] = max;
    head.inverse_sum[query + i] = inverse_sum;
    head.delta[query + i] = delta;
  }
}

AUTOSP_AI void copy(const float* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kWidth) Simd::store(to + i, Simd::load(from + i));
}

// Weights of plain scores, while these are in registers. Statistics start at the panel.
template <int R>
__attribute__((noinline)) void weight_tile(const float* keys, int64_t key_row,
                                           const float* transposed, int64_t width, const float* max,
                                           const float* inverse_sum, float* weights) {
  tile<R>(
      keys, key_row, transposed,
      width, [&](int i, int64_t lane, V sum) __attribute__((always_inline)) {
        Simd::store(weights + i * kQueryBlock + lane,
                    exp_of(sum - Simd::load(max + lane)) * Simd::load(inverse_sum + lane));
      });
}

template <int R>
__attribute__((noinline)) void gradient_tile(const float* values, int64_t value_row,
                                             const float* transposed, int64_t width,
                                             const float* delta, float scale, const float* weights,
                                             float* score_gradient) {
  tile<R>(
      values, value_row, transposed,
      width, [&](int i, int64_t lane, V sum) __attribute__((always_inline)) {
        const V weight = Simd::load(weights + i * kQueryBlock + lane) * Simd::set(scale);
        Simd::store(score_gradient + i * kQueryBlock + lane,
                    weight * (sum - Simd::load(delta + lane)));
      });
}

// The same where dropout multiplies weights by `factors`, and `weights` become what is left of
// them.
template <int R>
__attribute__((noinline)) void dropped_gradient_tile(const float* values, int64_t value_row,
                                                     const float* transposed, int64_t width,
                                                     const float* delta, float scale,
                                                     const float* factors, float* weights,
                                                     float* score_gradient) {
  tile<R>(
      values, value_row, transposed,
      width, [&](int i, int64_t lane, V sum) __attribute__((always_inline)) {
        float* weight = weights + i * kQueryBlock + lane;
        const V factor = Simd::load(factors + i * kQueryBlock + lane);
        Simd::store(
            score_gradient + i * kQueryBlock + lane,
            Simd::load(weight) * Simd::set(scale) * (sum * factor - Simd::load(delta + lane)));
        Simd::store(weight, Simd::load(weight) * factor);
      });
}

inline void weigh_again(const Patch& patch, const float* max, const float* inverse_sum) {
  for (int64_t j = 0; j < patch.rows; ++j) {
    for (int64_t lane = 0; lane < kPanel; lane += kWidth) {
      float* s = patch.scores + j * kQueryBlock + lane;
      Simd::store(s,
                  exp_of(Simd::load(s) - Simd::load(max + lane)) * Simd::load(inverse_sum + lane));
    }
  }
}

// What stands between the gradient of the biased scores and that of the products: dead rows, the
// bias's own gradient, the softcap. `gradient` is scaled already.
inline void adjust_gradient(const Problem& p, const Patch& patch, const Panel& panel,
                            float* gradient, const float* slopes) {
  const int64_t lanes = smaller(kPanel, p.sizes.queries - patch.query);
  if (panel.special && !p.sizes.dead_row_gradient) {
    const RowKind* kind = p.rows.kind + patch.batch * p.rows.queries + patch.query;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      if (kind[lane] < RowKind::kUniform) continue;
      for (int64_t j = 0; j < patch.rows; ++j) gradient[j * kQueryBlock + lane] = 0;
    }
  }
  if (p.bias_gradient != nullptr) {
    const auto& bias = p.sizes.bias;
    const float unscale = 1 / p.sizes.scale;
    float* first = p.bias_gradient + bias.at(patch.batch, patch.head, patch.query, patch.key);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      for (int64_t j = 0; j < patch.rows; ++j) {
        first[lane * bias.strides[2] + j * bias.strides[3]] +=
            unscale * gradient[j * kQueryBlock + lane];
      }
    }
  }
  if (p.sizes.softcap == 0) return;
  for (int64_t j = 0; j < patch.rows; ++j) {
    for (int64_t lane = 0; lane < kPanel; lane += kWidth) {
      float* g = gradient + j * kQueryBlock + lane;
      Simd::store(g, Simd::load(g) * Simd::load(slopes + j * kQueryBlock + lane));
    }
  }
}

// Keys [begin, begin + count).
struct KeyBlock {
  int64_t begin;
  int64_t count;
  FloatRows keys;
  FloatRows values;
};

// Weights and score gradients of a block of keys and one panel of queries.
inline void visit_panel(const Problem& p, const Head& head, int64_t query, int64_t lane,
                        const KeyBlock& block, const BackwardScratch& s) {
  const int64_t key = block.begin;
  const int64_t count = block.count;
  const Panel& panel = *panels_of(p, head.batch, query + lane);
  const Span seen = seen_keys(panel, key, count);
  const float* queries = head.query + query * p.width + lane;
  const float* gradients = head.output_gradient + query * p.value_width + lane;
  const int64_t at = query + lane;
  const bool touched = p.bias_gradient != nullptr || p.sizes.softcap != 0 ||
                       (panel.special && !p.sizes.dead_row_gradient);
  for_each_tile(
      count, [&](auto rows, int64_t j) __attribute__((always_inline)) {
        float* weights = s.weights + j * kQueryBlock + lane;
        float* gradient = s.score_gradient + j * kQueryBlock + lane;
        float* slopes = s.slopes + j * kQueryBlock + lane;
        if (j + rows <= seen.begin || j >= seen.end) {
          clear_rows(weights, {0, rows});
          clear_rows(gradient, {0, rows});
          return;
        }
        const Patch patch{head.batch, head.head, at, key + j, rows, weights};
        if (is_plain(p, panel, key + j, rows)) {
          weight_tile<rows>(block.keys.data + j * block.keys.row, block.keys.row, queries, p.width,
                            head.max + at, head.inverse_sum + at, weights);
        } else {
          score_tile<rows>(block.keys.data + j * block.keys.row, block.keys.row, queries, p.width,
                           weights);
          adjust(p, patch, panel, slopes);
          weigh_again(patch, head.max + at, head.inverse_sum + at);
        }
        const float* values = block.values.data + j * block.values.row;
        if (p.sizes.dropout) {
          alignas(64) float factors[rows * kQueryBlock];
          Dropper(p, patch).for_each(
              rows, [&](int64_t i, const float* row) __attribute__((always_inline)) {
                copy(row, kPanel, factors + i * kQueryBlock);
              });
          dropped_gradient_tile<rows>(values, block.values.row, gradients, p.value_width,
                                      head.delta + at, p.sizes.scale, factors, weights, gradient);
        } else {
          gradient_tile<rows>(values, block.values.row, gradients, p.value_width, head.delta + at,
                              p.sizes.scale, weights, gradient);
        }
        if (touched) adjust_gradient(p, patch, panel, gradient, slopes);
      });
}

// The queries of [query, query + count), counted from `query`, that see one of `rows` keys.
inline Span seeing_queries(const Problem& p, int64_t batch, int64_t query, int64_t count,
                           int64_t key, int64_t rows) {
  const float* begin = p.rows.begin + batch * p.rows.queries + query;
  const float* end = p.rows.end + batch * p.rows.queries + query;
  const auto first_key = static_cast<float>(key);
  const auto last_key = static_cast<float>(key + rows - 1);
  const auto sees = [&](int64_t i) {
    return begin[i] <= last_key && end[i] > first_key && begin[i] < end[i];
  };
  Span span{0, count};
  while (span.begin < count && !sees(span.begin)) ++span.begin;
  while (span.end > span.begin && !sees(span.end - 1)) --span.end;
  return span;
}

// The three products that end in gradients, for one block of queries and one of keys.
inline void add_gradients(const Problem& p, const Head& head, int64_t query, int64_t queries,
                          const KeyBlock& block, bool full, const BackwardScratch& s) {
  const int64_t batch = head.batch;
  const int64_t key = block.begin;
  const int64_t keys = block.count;
  const auto floats = [&](const Array& array, float* copy) {
    return floats_of(array, batch, head.head, query, queries, copy);
  };
  const FloatRows query_rows = floats(p.query, s.queries);
  const FloatRows gradient_rows = floats(p.output_gradient, s.output_gradients);
  const int64_t key_step = full ? keys : Simd::kSumRows;
  for (int64_t j = 0; j < keys; j += key_step) {
    const int64_t rows = smaller(key_step, keys - j);
    const Span seeing =
        full ? Span{0, queries} : seeing_queries(p, batch, query, queries, key + j, rows);
    if (seeing.begin >= seeing.end) continue;
    const int64_t depth = seeing.end - seeing.begin;
    const int64_t corner = j * kQueryBlock + seeing.begin;
    add_product(rows, p.value_width, {s.weights + corner, kQueryBlock, 1},
                gradient_rows.data + seeing.begin * gradient_rows.row, gradient_rows.row, depth,
                s.value_gradient + j * p.value_width, p.value_width);
    add_product(rows, p.width, {s.score_gradient + corner, kQueryBlock, 1},
                query_rows.data + seeing.begin * query_rows.row, query_rows.row, depth,
                s.key_gradient + j * p.width, p.width);
  }
  const int64_t query_step = full ? queries : Simd::kSumRows;
  for (int64_t i = 0; i < queries; i += query_step) {
    const int64_t rows = smaller(query_step, queries - i);
    const Span seen = full ? Span{0, keys} : seen_keys(p, batch, query + i, rows, key, keys);
    if (seen.begin >= seen.end) continue;
    add_product(rows, p.width, {s.score_gradient + seen.begin * kQueryBlock + i, 1, kQueryBlock},
                block.keys.data + seen.begin * block.keys.row, block.keys.row,
                seen.end - seen.begin, head.query_gradient + (query + i) * p.width, p.width);
  }
}

inline void backward(const Problem& p, const Head& head, int64_t key_block, float* memory) {
  const FlushDenormals flush;
  const BackwardScratch s = carve_backward(p, memory);
  const int64_t key = key_block * kKeyBlock;
  const int64_t count = smaller(kKeyBlock, p.sizes.keys - key);
  const int64_t kv_head = head.head / p.sizes.group;
  const KeyBlock block{key, count, floats_of(p.key, head.batch, kv_head, key, count, s.keys),
                       floats_of(p.value, head.batch, kv_head, key, count, s.values)};
  float* key_gradient = head.key_gradient + key * p.width;
  float* value_gradient = head.value_gradient + key * p.value_width;
  if (head.first) {
    fill(s.key_gradient, count * p.width, 0);
    fill(s.value_gradient, count * p.value_width, 0);
  } else {
    copy(key_gradient, count * p.width, s.key_gradient);
    copy(value_gradient, count * p.value_width, s.value_gradient);
  }
  for (int64_t query = 0; query < p.sizes.queries; query += kQueryBlock) {
    const int64_t queries = query_count(p, query);
    const Panel* panels = panels_of(p, head.batch, query);
    bool seen = false;
    bool full = true;
    for (int64_t lane = 0; lane < queries; lane += kPanel) {
      const Panel& panel = panels[lane / kPanel];
      seen = seen || (panel.begin < key + count && panel.end > key);
      full = full && panel.full_begin <= key && panel.full_end >= key + count;
    }
    if (!seen) continue;
    for (int64_t lane = 0; lane < queries; lane += kPanel) {
      visit_panel(p, head, query, lane, block, s);
    }
    add_gradients(p, head, query, queries, block, full, s);
  }
  copy(s.key_gradient, count * p.width, key_gradient);
  copy(s.value_gradient, count * p.value_width, value_gradient);
}

inline void store_rows(const Array& array, int64_t batch, int64_t head, const float* rows) {
  const int64_t wide = round_up(array.width, kLanes);
  for (int64_t r = 0; r < array.rows; ++r) store_row(array, batch, head, r, rows + r * wide, 1);
}

inline constexpr Functions kFunctions = {AUTOSP_SIMD_NAME, kPanel,    forward_scratch,
                                         backward_scratch, forward,   prepare,
                                         backward,         store_rows};

}  // namespace
}  // namespace autosp::executor::attention

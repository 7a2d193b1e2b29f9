// One block of queries against all keys that they see, with a running maximum and sum. See simd.h
// for how this is compiled.
#pragma once

#include "executor/kernels/attention/dropout.h"

namespace autosp::executor::attention {
namespace {

struct ForwardScratch {
  float* query;   // [width][kQueryBlock], transposed
  float* scores;  // [kKeyBlock][kQueryBlock]
  float* output;  // [kQueryBlock][value width]
  float* max;     // [kQueryBlock]
  float* sum;
  float* change;  // what the output so far is multiplied by
  float* keys;    // [kKeyBlock][width], widened; queries first
  float* values;  // [kKeyBlock][value width], likewise
};

inline int64_t forward_scratch(const Problem& p) {
  const int64_t widened = widens(p) ? kKeyBlock * (p.width + p.value_width) : 0;
  return kQueryBlock * (p.width + p.value_width + kKeyBlock + 3) + widened;
}

AUTOSP_AI ForwardScratch carve(const Problem& p, float* memory) {
  ForwardScratch s;
  s.query = memory;
  s.scores = s.query + kQueryBlock * p.width;
  s.output = s.scores + kKeyBlock * kQueryBlock;
  s.max = s.output + kQueryBlock * p.value_width;
  s.sum = s.max + kQueryBlock;
  s.change = s.sum + kQueryBlock;
  s.keys = s.change + kQueryBlock;
  s.values = s.keys + kKeyBlock * p.width;
  return s;
}

// One block of queries of one head.
struct Place {
  int64_t batch;
  int64_t head;
  int64_t query;
  int64_t count;  // of queries
};

AUTOSP_AI void fill(float* x, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) x[i] = value;
}

// Scores of keys [key, key + count) become weights relative to the new maximum. True when a maximum
// that the output depends on has changed.
inline bool weigh_panel(const Problem& p, const Place& at, int64_t first_query, int64_t key,
                        Span rows, const ForwardScratch& s) {
  const Panel& panel = *panels_of(p, at.batch, at.query + first_query);
  float* scores = s.scores + first_query;
  const Patch patch{at.batch,
                    at.head,
                    at.query + first_query,
                    key + rows.begin,
                    rows.end - rows.begin,
                    scores + rows.begin * kQueryBlock};
  if (!is_plain(p, panel, patch.key, patch.rows)) adjust(p, patch, panel, nullptr);

  constexpr int kVectors = Simd::kScoreVectors;
  V old[kVectors];
  V max[kVectors];
  V sum[kVectors];
  unrolled<kVectors>([&](auto v) __attribute__((always_inline)) {
    old[v] = max[v] = Simd::load(s.max + first_query + v * kWidth);
    sum[v] = Simd::zero();
  });
  for (int64_t j = rows.begin; j < rows.end; ++j) {
    const float* row = scores + j * kQueryBlock;
    unrolled<kVectors>([&](auto v) __attribute__((always_inline)) {
      max[v] = Simd::max(max[v], Simd::load(row + v * kWidth));
    });
  }
  for (int64_t j = rows.begin; j < rows.end; ++j) {
    float* row = scores + j * kQueryBlock;
    unrolled<kVectors>([&](auto v) __attribute__((always_inline)) {
      const V weight = exp_of(Simd::load(row + v * kWidth) - max[v]);
      Simd::store(row + v * kWidth, weight);
      sum[v] = sum[v] + weight;
    });
  }
  if (p.sizes.dropout) drop_weights(p, patch);  // the sum is of all weights
  unrolled<kVectors>([&](auto v) __attribute__((always_inline)) {
    const V change = exp_of(old[v] - max[v]);
    Simd::store(s.change + first_query + v * kWidth, change);
    Simd::store(s.max + first_query + v * kWidth, max[v]);
    float* total = s.sum + first_query + v * kWidth;
    Simd::store(total, Simd::fma(Simd::load(total), change, sum[v]));
  });
  bool changed = false;
  for (int64_t lane = 0; lane < kPanel; ++lane) changed |= s.change[first_query + lane] != 1.0F;
  return changed;
}

inline void clear_rows(float* scores, Span rows) {
  for (int64_t j = rows.begin; j < rows.end; ++j) fill(scores + j * kQueryBlock, kPanel, 0);
}

// output += weights . value, each group of rows over the keys that it sees.
inline void add_values(const Problem& p, const Place& at, int64_t key, int64_t count, bool full,
                       const ForwardScratch& s) {
  const FloatRows values =
      floats_of(p.value, at.batch, at.head / p.sizes.group, key, count, s.values);
  const int64_t step = full ? at.count : Simd::kSumRows;
  for (int64_t i = 0; i < at.count; i += step) {
    const int64_t rows = smaller(step, at.count - i);
    const Span seen =
        full ? Span{0, count} : seen_keys(p, at.batch, at.query + i, rows, key, count);
    if (seen.begin >= seen.end) continue;
    add_product(rows, p.value_width, {s.scores + seen.begin * kQueryBlock + i, 1, kQueryBlock},
                values.data + seen.begin * values.row, values.row, seen.end - seen.begin,
                s.output + i * p.value_width, p.value_width);
  }
}

// Keys [key, key + count).
inline void visit_keys(const Problem& p, const Place& at, int64_t key, int64_t count,
                       const ForwardScratch& s) {
  const FloatRows keys = floats_of(p.key, at.batch, at.head / p.sizes.group, key, count, s.keys);
  const Panel* panels = panels_of(p, at.batch, at.query);
  const int64_t num_panels = (at.count + kPanel - 1) / kPanel;
  // Whole tiles of keys, so that those of one panel follow each other in memory.
  Span spans[kQueryBlock / kPanel];
  bool full = true;
  for (int64_t c = 0; c < num_panels; ++c) {
    const Span seen = seen_keys(panels[c], key, count);
    spans[c] = seen.begin >= seen.end ? Span{0, 0}
                                      : Span{seen.begin / Simd::kScoreRows * Simd::kScoreRows,
                                             smaller(count, round_up(seen.end, Simd::kScoreRows))};
    full = full && panels[c].full_begin <= key && panels[c].full_end >= key + count;
  }
  for_each_tile(
      count, [&](auto rows, int64_t j) __attribute__((always_inline)) {
        for (int64_t c = 0; c < num_panels; ++c) {
          if (j < spans[c].begin || j >= spans[c].end) continue;
          score_tile<rows>(keys.data + j * keys.row, keys.row, s.query + c * kPanel, p.width,
                           s.scores + j * kQueryBlock + c * kPanel);
        }
      });
  bool changed = false;
  for (int64_t c = 0; c < num_panels; ++c) {
    clear_rows(s.scores + c * kPanel, {0, spans[c].begin});
    clear_rows(s.scores + c * kPanel, {spans[c].end, count});
    if (spans[c].begin == spans[c].end) {
      fill(s.change + c * kPanel, kPanel, 1);
    } else {
      changed |= weigh_panel(p, at, c * kPanel, key, spans[c], s);
    }
  }
  if (changed) {
    for (int64_t i = 0; i < at.count; ++i) {
      if (s.change[i] == 1.0F) continue;
      const V change = Simd::set(s.change[i]);
      float* row = s.output + i * p.value_width;
      for (int64_t e = 0; e < p.value_width; e += kWidth) {
        Simd::store(row + e, Simd::load(row + e) * change);
      }
    }
  }
  add_values(p, at, key, count, full, s);
}

inline void finish(const Problem& p, const Place& at, const ForwardScratch& s) {
  for (int64_t i = 0; i < at.count; ++i) {
    const RowKind kind = p.rows.kind[at.batch * p.rows.queries + at.query + i];
    float* row = s.output + i * p.value_width;
    float factor = 1.0F / s.sum[i];
    if (kind == RowKind::kEmpty || kind == RowKind::kNan) {
      fill(row, p.value_width, 0);
      factor = kind == RowKind::kNan ? std::numeric_limits<float>::quiet_NaN() : 0.0F;
    }
    store_row(p.output, at.batch, at.head, at.query + i, row, factor);
    const bool has_statistics = kind == RowKind::kNormal || kind == RowKind::kUnmasked;
    const int64_t n = (at.batch * p.sizes.query_heads + at.head) * p.sizes.queries + at.query + i;
    if (p.row_max != nullptr) p.row_max[n] = has_statistics ? s.max[i] : kLowest;
    if (p.row_sum != nullptr) p.row_sum[n] = has_statistics ? s.sum[i] : 0;
  }
}

inline void forward(const Problem& p, int64_t batch, int64_t head, int64_t query_block,
                    float* memory) {
  const FlushDenormals flush;
  const int64_t query = query_block * kQueryBlock;
  const Place at{batch, head, query, query_count(p, query)};
  const ForwardScratch s = carve(p, memory);
  const FloatRows queries = floats_of(p.query, batch, head, query, at.count, s.keys);
  transpose(queries.data, queries.row, at.count, p.width, p.sizes.scale, s.query);
  fill(s.output, kQueryBlock * p.value_width, 0);
  fill(s.max, kQueryBlock, p.sink == nullptr ? kLowest : p.sink[head]);
  fill(s.sum, kQueryBlock, p.sink == nullptr ? 0.0F : 1.0F);
  const Span seen = seen_keys(p, batch, query, at.count, 0, p.sizes.keys);
  for (int64_t key = seen.begin; key < seen.end; key += kKeyBlock) {
    visit_keys(p, at, key, smaller(kKeyBlock, seen.end - key), s);
  }
  finish(p, at, s);
}

}  // namespace
}  // namespace autosp::executor::attention

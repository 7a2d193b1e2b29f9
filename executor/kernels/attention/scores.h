// Score tiles and what happens to scores before they become weights. See simd.h for how this is
// compiled.
#pragma once

#include "executor/kernels/attention/elements.h"

namespace autosp::executor::attention {
namespace {

static_assert(kQueryBlock % kPanel == 0);

inline constexpr float kLowest = std::numeric_limits<float>::lowest();
inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

AUTOSP_AI const Panel* panels_of(const Problem& p, int64_t batch, int64_t query) {
  return p.rows.panels + batch * p.rows.num_panels + query / kPanel;
}

AUTOSP_AI int64_t query_count(const Problem& p, int64_t query) {
  return smaller(kQueryBlock, p.sizes.queries - query);
}

// to[d][kQueryBlock] = scale * from[row][d], with zeros for rows that are not there.
#if defined(__AVX512F__)
AUTOSP_AI void transpose_16(const float* from, int64_t row, float* to, V scale) {
  V r[16];
  V t[16];
  const auto low = [&](int64_t a, int64_t b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[a]), _mm512_castps_pd(t[b])));
  };
  const auto high = [&](int64_t a, int64_t b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[a]), _mm512_castps_pd(t[b])));
  };
#pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) r[i] = Simd::load(from + i * row) * scale;
#pragma GCC unroll 8
  for (int64_t i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int64_t i = 0; i < 4; ++i) {
    r[4 * i] = low(4 * i, 4 * i + 2);
    r[4 * i + 1] = high(4 * i, 4 * i + 2);
    r[4 * i + 2] = low(4 * i + 1, 4 * i + 3);
    r[4 * i + 3] = high(4 * i + 1, 4 * i + 3);
  }
#pragma GCC unroll 4
  for (int64_t i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int64_t i = 0; i < 4; ++i) {
    Simd::store(to + i * kQueryBlock, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
    Simd::store(to + (i + 8) * kQueryBlock, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd));
    Simd::store(to + (i + 4) * kQueryBlock, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88));
    Simd::store(to + (i + 12) * kQueryBlock, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd));
  }
}
#endif

inline void transpose(const float* from, int64_t row, int64_t rows, int64_t width, float scale,
                      float* to) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= rows; i += 16) {
    for (int64_t d = 0; d < width; d += 16) {
      transpose_16(from + i * row + d, row, to + d * kQueryBlock + i, Simd::set(scale));
    }
  }
#endif
  for (; i < rows; ++i) {
    for (int64_t d = 0; d < width; ++d) to[d * kQueryBlock + i] = scale * from[i * row + d];
  }
  for (; i < kQueryBlock; ++i) {
    for (int64_t d = 0; d < width; ++d) to[d * kQueryBlock + i] = 0;
  }
}

// A tile of R keys and one panel of queries: sums over the width, given to `finish(row, vector,
// sum)`.
template <int R, typename Finish>
AUTOSP_AI void tile(const float* keys, int64_t key_row, const float* transposed, int64_t width,
                    Finish&& finish) {
  constexpr int kVectors = Simd::kScoreVectors;
  V sums[R * kVectors];
  unrolled<R * kVectors>([&](auto x) __attribute__((always_inline)) { sums[x] = Simd::zero(); });
  multiply<R, kVectors>(sums, {keys, key_row, 1}, transposed, kQueryBlock, width);
  unrolled<R * kVectors>([&](auto x) __attribute__((always_inline)) {
    finish(x / kVectors, x % kVectors * kWidth, sums[x]);
  });
}

// Calls f(integral_constant<R>, first row) for tiles that make up `rows` rows.
template <typename F>
AUTOSP_AI void for_each_tile(int64_t rows, F&& f) {
  int64_t j = 0;
  for (; j + Simd::kScoreRows <= rows; j += Simd::kScoreRows) {
    f(std::integral_constant<int, Simd::kScoreRows>{}, j);
  }
  const auto rest = [&](auto count) __attribute__((always_inline)) {
    if (j + count > rows) return;
    f(count, j);
    j += count;
  };
  rest(std::integral_constant<int, 4>{});
  rest(std::integral_constant<int, 2>{});
  rest(std::integral_constant<int, 1>{});
}

template <int R>
__attribute__((noinline)) void score_tile(const float* keys, int64_t key_row,
                                          const float* transposed, int64_t width, float* scores) {
  tile<R>(
      keys, key_row, transposed,
      width, [&](int i, int64_t lane, V sum) __attribute__((always_inline)) {
        Simd::store(scores + i * kQueryBlock + lane, sum);
      });
}

// Keys [key, key + rows) and one panel of queries of one head.
struct Patch {
  int64_t batch;
  int64_t head;
  int64_t query;
  int64_t key;
  int64_t rows;
  float* scores;  // [rows][kQueryBlock], at the panel's first query
};

// tanh, of small arguments by its odd Taylor polynomial: the quotient would cancel.
AUTOSP_AI V tanh_of(V x) {
  const V square = x * x;
  V p = Simd::set(-1382.0F / 155925);
  p = Simd::fma(p, square, Simd::set(62.0F / 2835));
  p = Simd::fma(p, square, Simd::set(-17.0F / 315));
  p = Simd::fma(p, square, Simd::set(2.0F / 15));
  p = Simd::fma(p, square, Simd::set(-1.0F / 3));
  const V near_zero = Simd::fma(x * square, p, x);
  const V magnitude = Simd::max(x, -x);
  const V bounded = magnitude < Simd::set(20) ? magnitude : Simd::set(20);
  const V far = Simd::set(1) - Simd::set(2) / (exp_of(bounded + bounded) + Simd::set(1));
  const V signed_far = x < Simd::zero() ? -far : far;
  const V result = magnitude < Simd::set(0.3F) ? near_zero : signed_far;
  return x == x ? result : x;
}

// s = cap tanh(s / cap); the derivative 1 - tanh^2 to `slopes` unless null.
inline void cap_scores(const Patch& patch, float cap, float* slopes) {
  for (int64_t j = 0; j < patch.rows; ++j) {
    for (int64_t lane = 0; lane < kPanel; lane += kWidth) {
      float* s = patch.scores + j * kQueryBlock + lane;
      const V t = tanh_of(Simd::load(s) / Simd::set(cap));
      Simd::store(s, t * Simd::set(cap));
      if (slopes != nullptr) Simd::store(slopes + j * kQueryBlock + lane, Simd::set(1) - t * t);
    }
  }
}

template <typename T>
AUTOSP_AI void add_bias(const Problem& p, const Patch& patch, const T* data) {
  const auto& bias = p.sizes.bias;
  const T* first = data + bias.at(patch.batch, patch.head, patch.query, patch.key);
  const int64_t by_query = bias.strides[2];
  const int64_t by_key = bias.strides[3];
  if (by_query == 0) {
    for (int64_t j = 0; j < patch.rows; ++j) {
      const V value = Simd::set(as_float(first[j * by_key]));
      for (int64_t lane = 0; lane < kPanel; lane += kWidth) {
        float* s = patch.scores + j * kQueryBlock + lane;
        Simd::store(s, Simd::load(s) + value);
      }
    }
    return;
  }
  const int64_t lanes = smaller(kPanel, p.sizes.queries - patch.query);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const T* row = first + lane * by_query;
    for (int64_t j = 0; j < patch.rows; ++j) {
      patch.scores[j * kQueryBlock + lane] += as_float(row[j * by_key]);
    }
  }
}

inline void add_bias(const Problem& p, const Patch& patch) {
  with_elements(
      p.type, p.sizes.bias.data, [&](const auto* data) __attribute__((always_inline)) {
        add_bias(p, patch, data);
      });
}

// -infinity where a query does not see a key.
inline void mask_scores(const Problem& p, const Patch& patch, const Panel& panel) {
  const auto& mask = p.sizes.mask;
  const int64_t at = patch.batch * p.rows.queries + patch.query;
  const bool* keys =
      mask.key == nullptr ? nullptr : mask.key + patch.batch * mask.key_stride + patch.key;
  const bool segments = p.rows.query_segment != nullptr;
  float dead[kPanel];  // 1 where key mask and segments do not count
  for (int64_t lane = 0; lane < kPanel; ++lane) {
    dead[lane] = panel.special && p.rows.kind[at + lane] >= RowKind::kUniform ? 1.0F : 0.0F;
  }
  for (int64_t j = 0; j < patch.rows; ++j) {
    const int64_t key = patch.key + j;
    const bool hidden = keys != nullptr && !keys[j];
    const bool in_full = key >= panel.full_begin && key < panel.full_end;
    if (in_full && !hidden && !segments && !panel.special) continue;
    const V position = Simd::set(static_cast<float>(key));
    const V segment =
        Simd::set(segments ? p.rows.key_segment[patch.batch * p.sizes.keys + key] : 0.0F);
    for (int64_t lane = 0; lane < kPanel; lane += kWidth) {
      float* s = patch.scores + j * kQueryBlock + lane;
      auto seen = (position >= Simd::load(p.rows.begin + at + lane)) &
                  (position < Simd::load(p.rows.end + at + lane));
      const auto exempt = Simd::load(dead + lane) > Simd::zero();
      if (hidden) seen &= exempt;
      if (segments) seen &= exempt | (segment == Simd::load(p.rows.query_segment + at + lane));
      Simd::store(s, seen ? Simd::load(s) : Simd::set(kMinusInfinity));
    }
  }
  if (!panel.special) return;
  for (int64_t lane = 0; lane < kPanel; ++lane) {
    const RowKind kind = p.rows.kind[at + lane];
    if (kind != RowKind::kUniform && kind != RowKind::kNan) continue;
    const float value = kind == RowKind::kNan ? std::numeric_limits<float>::quiet_NaN() : 0.0F;
    for (int64_t j = 0; j < patch.rows; ++j) patch.scores[j * kQueryBlock + lane] = value;
  }
}

// Whether scores of these keys become weights as they are.
AUTOSP_AI bool is_plain(const Problem& p, const Panel& panel, int64_t key, int64_t rows) {
  return p.sizes.softcap == 0 && p.sizes.bias.data == nullptr && p.sizes.mask.key == nullptr &&
         p.rows.query_segment == nullptr && !panel.special && key >= panel.full_begin &&
         key + rows <= panel.full_end;
}

// Softcap, bias and masks.
inline void adjust(const Problem& p, const Patch& patch, const Panel& panel, float* slopes) {
  if (p.sizes.softcap != 0) cap_scores(patch, p.sizes.softcap, slopes);
  if (p.sizes.bias.data != nullptr) add_bias(p, patch);
  mask_scores(p, patch, panel);
}

struct Span {
  int64_t begin;
  int64_t end;
};

// The keys of [key, key + count), counted from `key`, that some query of a panel sees.
AUTOSP_AI Span seen_keys(const Panel& panel, int64_t key, int64_t count) {
  const int64_t begin = larger(0, panel.begin - key);
  return {begin, larger(begin, smaller(count, panel.end - key))};
}

// The same of queries [query, query + rows).
AUTOSP_AI Span seen_keys(const Problem& p, int64_t batch, int64_t query, int64_t rows, int64_t key,
                         int64_t count) {
  const float* begin = p.rows.begin + batch * p.rows.queries + query;
  const float* end = p.rows.end + batch * p.rows.queries + query;
  Panel panel{std::numeric_limits<int32_t>::max(), 0, 0, 0, false};
  for (int64_t i = 0; i < rows; ++i) {
    if (begin[i] >= end[i]) continue;
    panel.begin = static_cast<int32_t>(smaller(panel.begin, static_cast<int64_t>(begin[i])));
    panel.end = static_cast<int32_t>(larger(panel.end, static_cast<int64_t>(end[i])));
  }
  return seen_keys(panel, key, count);
}

}  // namespace
}  // namespace autosp::executor::attention

// The forward pass of bfloat16 in tiles of 16 x 16 sums. See simd.h for how this is compiled.
//
// A tile product is C[16][16] += A[16][32] B[32][16] of bfloat16 with sums in float; B lies in
// pairs of rows, B[16][16][2]. Scores stay transposed, and so is the output:
//
//   S^T[key][query] = K Q^T        K as it lies, Q^T in pairs along the width
//   O^T[e][query]  += V^T P^T      V packed once per head, P^T in pairs of keys
#pragma once

#include "executor/kernels/attention/forward_block.h"

namespace autosp::executor::attention {
namespace {

inline constexpr int64_t kTile = 16;   // rows and sums of a tile
inline constexpr int64_t kDepth = 32;  // bfloat16 per row of a tile

static_assert(kPanel == 3 * kTile && kKeyBlock % kDepth == 0);

inline int64_t depth_of(const Problem& p) { return round_up(p.width, kDepth); }
inline int64_t query_pairs(const Problem& p) { return depth_of(p) / 2; }

// Values of a block of keys: [value width][kKeyBlock], with zeros where there are no keys.
inline int64_t packed_block(const Problem& p) { return p.value_width * kKeyBlock; }

struct AmxScratch {
  ForwardScratch floats;  // output: [value width][kQueryBlock] until it is finished
  uint32_t* queries;      // [width / 2][kQueryBlock] pairs
  uint16_t* keys;         // [kKeyBlock][width], where they do not lie in whole tiles
  uint32_t* weights;      // [kKeyBlock / 2][kQueryBlock] pairs
  float* rows;            // [kQueryBlock][value width]: the output when it is finished
};

inline int64_t amx_forward_scratch(const Problem& p) {
  const int64_t depth = depth_of(p);
  return forward_scratch(p) + kQueryBlock * depth / 2 + kKeyBlock * depth / 2 +
         kKeyBlock * kQueryBlock / 2 + kQueryBlock * p.value_width;
}

AUTOSP_AI AmxScratch carve_amx(const Problem& p, float* memory) {
  AmxScratch s;
  s.floats = carve(p, memory);
  float* next = memory + forward_scratch(p);
  const auto take = [&](int64_t floats) {
    float* at = next;
    next += floats;
    return at;
  };
  s.queries = reinterpret_cast<uint32_t*>(take(query_pairs(p) * kQueryBlock));
  s.keys = reinterpret_cast<uint16_t*>(take(kKeyBlock * depth_of(p) / 2));
  s.weights = reinterpret_cast<uint32_t*>(take(kKeyBlock / 2 * kQueryBlock));
  s.rows = take(kQueryBlock * p.value_width);
  return s;
}

// All eight tiles have 16 rows of 64 bytes while this lives.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1;
      uint8_t start = 0;
      uint8_t reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    // The intrinsic says that it reads eight bytes; the compiler must write all of them.
    asm volatile("" : : "r"(&shape) : "memory");
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// to[c][r] = from[r][c] of 16 x 16 numbers of 32 bits.
AUTOSP_AI void transpose_bits(const uint32_t* from, int64_t from_row, uint32_t* to,
                              int64_t to_row) {
  __m512i r[16];
  __m512i t[16];
#pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from + i * from_row);
#pragma GCC unroll 8
  for (int64_t i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int64_t i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int64_t i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int64_t i = 0; i < 4; ++i) {
    _mm512_storeu_si512(to + i * to_row, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_si512(to + (i + 8) * to_row, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
    _mm512_storeu_si512(to + (i + 4) * to_row, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
    _mm512_storeu_si512(to + (i + 12) * to_row, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
  }
}

// Rows of a head, `count` of them, in `whole` rows of `wide` elements, with zeros around.
inline void pad_rows(const Array& array, int64_t batch, int64_t head, int64_t row, int64_t count,
                     int64_t whole, int64_t wide, uint16_t* to) {
  const auto* from = reinterpret_cast<const uint16_t*>(array.at(batch, head, row));
  for (int64_t i = 0; i < count; ++i) {
    __builtin_memcpy(to + i * wide, from + i * array.width, static_cast<size_t>(array.width) * 2);
    for (int64_t d = array.width; d < wide; ++d) to[i * wide + d] = 0;
  }
  __builtin_memset(to + count * wide, 0, static_cast<size_t>((whole - count) * wide) * 2);
}

inline void pack(const Problem& p, int64_t batch, int64_t kv_head, int64_t key_block,
                 uint16_t* packed) {
  const int64_t key = key_block * kKeyBlock;
  const int64_t count = smaller(kKeyBlock, p.sizes.keys - key);
  const auto* values = reinterpret_cast<const uint16_t*>(p.value.at(batch, kv_head, key));
  const int64_t width = p.value.width;
  for (int64_t e = 0; e < p.value_width; ++e) {
    uint16_t* row = packed + e * kKeyBlock;
    const int64_t there = e < width ? count : 0;
    for (int64_t j = 0; j < there; ++j) row[j] = values[j * width + e];
    for (int64_t j = there; j < kKeyBlock; ++j) row[j] = 0;
  }
}

struct Bits16Rows {
  const uint16_t* data;
  int64_t row;
};

// Scores, not scaled, of keys [32 j, 32 j + 32) and one panel of queries: six tiles of sums.
AUTOSP_AI void score_tiles(const Bits16Rows& keys, const uint32_t* queries, int64_t pairs,
                           float* scores) {
  constexpr int64_t kRow = kQueryBlock * static_cast<int64_t>(sizeof(float));
  const int64_t key_row = keys.row * 2;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  const uint16_t* upper = keys.data;
  const uint16_t* lower = keys.data + kTile * keys.row;
  for (int64_t d = 0; d < pairs; d += kTile) {
    const uint32_t* q = queries + d * kQueryBlock;
    _tile_loadd(6, upper + 2 * d, key_row);
    _tile_loadd(7, q, kRow);
    _tile_dpbf16ps(0, 6, 7);
    _tile_loadd(7, q + kTile, kRow);
    _tile_dpbf16ps(1, 6, 7);
    _tile_loadd(7, q + 2 * kTile, kRow);
    _tile_dpbf16ps(2, 6, 7);
    _tile_loadd(6, lower + 2 * d, key_row);
    _tile_dpbf16ps(5, 6, 7);
    _tile_loadd(7, q + kTile, kRow);
    _tile_dpbf16ps(4, 6, 7);
    _tile_loadd(7, q, kRow);
    _tile_dpbf16ps(3, 6, 7);
  }
  _tile_stored(0, scores, kRow);
  _tile_stored(1, scores + kTile, kRow);
  _tile_stored(2, scores + 2 * kTile, kRow);
  float* next = scores + kTile * kQueryBlock;
  _tile_stored(3, next, kRow);
  _tile_stored(4, next + kTile, kRow);
  _tile_stored(5, next + 2 * kTile, kRow);
}

// output[32][one panel] += values[32][keys] weights[keys][panel], for keys in [begin, end), which
// are multiples of 32.
AUTOSP_AI void value_tiles(const uint16_t* values, const uint32_t* weights, Span keys,
                           bool lower_half, float* output) {
  constexpr int64_t kRow = kQueryBlock * static_cast<int64_t>(sizeof(float));
  constexpr int64_t kValueRow = kKeyBlock * 2;
  float* next = output + kTile * kQueryBlock;
  _tile_loadd(0, output, kRow);
  _tile_loadd(1, output + kTile, kRow);
  _tile_loadd(2, output + 2 * kTile, kRow);
  if (lower_half) {
    _tile_loadd(3, next, kRow);
    _tile_loadd(4, next + kTile, kRow);
    _tile_loadd(5, next + 2 * kTile, kRow);
  }
  for (int64_t j = keys.begin; j < keys.end; j += kDepth) {
    const uint32_t* w = weights + j / 2 * kQueryBlock;
    _tile_loadd(6, values + j, kValueRow);
    _tile_loadd(7, w, kRow);
    _tile_dpbf16ps(0, 6, 7);
    _tile_loadd(7, w + kTile, kRow);
    _tile_dpbf16ps(1, 6, 7);
    _tile_loadd(7, w + 2 * kTile, kRow);
    _tile_dpbf16ps(2, 6, 7);
    if (!lower_half) continue;
    _tile_loadd(6, values + kTile * kKeyBlock + j, kValueRow);
    _tile_dpbf16ps(5, 6, 7);
    _tile_loadd(7, w + kTile, kRow);
    _tile_dpbf16ps(4, 6, 7);
    _tile_loadd(7, w, kRow);
    _tile_dpbf16ps(3, 6, 7);
  }
  _tile_stored(0, output, kRow);
  _tile_stored(1, output + kTile, kRow);
  _tile_stored(2, output + 2 * kTile, kRow);
  if (!lower_half) return;
  _tile_stored(3, next, kRow);
  _tile_stored(4, next + kTile, kRow);
  _tile_stored(5, next + 2 * kTile, kRow);
}

// Two rows of weights as pairs of bfloat16, rounded to nearest.
AUTOSP_AI __m512i pairs_of(V even, V odd) {
  const __m512i half = _mm512_set1_epi32(0x8000);
  const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
  const __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
  return _mm512_mask_blend_epi16(0xaaaaaaaaU, low, high);
}

// Scales scores, then what `adjust` does; rows where there are no keys are hidden.
inline void adjust_scaled(const Problem& p, const Place& at, int64_t first_query, int64_t key,
                          Span rows, const Panel& panel, float* scores) {
  const int64_t end = smaller(rows.end, p.sizes.keys - key);
  const V scale = Simd::set(p.sizes.scale);
  for (int64_t j = rows.begin; j < rows.end; ++j) {
    for (int64_t lane = 0; lane < kPanel; lane += kWidth) {
      float* x = scores + j * kQueryBlock + lane;
      Simd::store(x, j < end ? Simd::load(x) * scale : Simd::set(kMinusInfinity));
    }
  }
  const Patch patch{at.batch,         at.head,          at.query + first_query,
                    key + rows.begin, end - rows.begin, scores + rows.begin * kQueryBlock};
  adjust(p, patch, panel, nullptr);
}

// As weigh_panel, but scores come without their scale, and weights go to pairs. Rows are whole
// tiles.
inline bool weigh_pairs(const Problem& p, const Place& at, int64_t first_query, int64_t key,
                        Span rows, const AmxScratch& s) {
  const Panel& panel = *panels_of(p, at.batch, at.query + first_query);
  float* scores = s.floats.scores + first_query;
  const bool plain =
      p.sizes.scale > 0 && is_plain(p, panel, key + rows.begin, rows.end - rows.begin);
  if (!plain) adjust_scaled(p, at, first_query, key, rows, panel, scores);
  const V scale = Simd::set(plain ? p.sizes.scale : 1.0F);

  constexpr int kVectors = Simd::kScoreVectors;
  V old[kVectors];
  V max[kVectors];
  V sum[kVectors];
  unrolled<kVectors>([&](auto v) __attribute__((always_inline)) {
    old[v] = Simd::load(s.floats.max + first_query + v * kWidth);
    max[v] = Simd::set(kMinusInfinity);
    sum[v] = Simd::zero();
  });
  for (int64_t j = rows.begin; j < rows.end; ++j) {
    const float* row = scores + j * kQueryBlock;
    unrolled<kVectors>([&](auto v) __attribute__((always_inline)) {
      max[v] = Simd::max(max[v], Simd::load(row + v * kWidth));
    });
  }
  unrolled<kVectors>([&](auto v) __attribute__((always_inline)) {
    max[v] = Simd::max(old[v], max[v] * scale);
  });
  for (int64_t j = rows.begin; j < rows.end; j += 2) {
    const float* row = scores + j * kQueryBlock;
    uint32_t* pairs = s.weights + j / 2 * kQueryBlock + first_query;
    unrolled<kVectors>([&](auto v) __attribute__((always_inline)) {
      const V even = exp_of(Simd::load(row + v * kWidth) * scale - max[v]);
      const V odd = exp_of(Simd::load(row + kQueryBlock + v * kWidth) * scale - max[v]);
      sum[v] = sum[v] + (even + odd);
      _mm512_storeu_si512(pairs + v * kWidth, pairs_of(even, odd));
    });
  }
  bool changed = false;
  unrolled<kVectors>([&](auto v) __attribute__((always_inline)) {
    const V change = exp_of(old[v] - max[v]);
    Simd::store(s.floats.change + first_query + v * kWidth, change);
    Simd::store(s.floats.max + first_query + v * kWidth, max[v]);
    float* total = s.floats.sum + first_query + v * kWidth;
    Simd::store(total, Simd::fma(Simd::load(total), change, sum[v]));
    changed |= _mm512_cmp_ps_mask(change, Simd::set(1), _CMP_NEQ_UQ) != 0;
  });
  return changed;
}

// Keys [key, key + count) of packed block key / kKeyBlock.
inline void visit_tiles(const Problem& p, const Place& at, int64_t key, int64_t count,
                        const AmxScratch& s) {
  const int64_t kv_head = at.head / p.sizes.group;
  Bits16Rows keys{reinterpret_cast<const uint16_t*>(p.key.at(at.batch, kv_head, key)), p.key.width};
  if (count < kKeyBlock || p.key.width % kDepth != 0) {
    pad_rows(p.key, at.batch, kv_head, key, count, kKeyBlock, depth_of(p), s.keys);
    keys = {s.keys, depth_of(p)};
  }
  const int64_t blocks = (p.sizes.keys + kKeyBlock - 1) / kKeyBlock;
  const uint16_t* values =
      p.packed_values +
      ((at.batch * p.sizes.kv_heads + kv_head) * blocks + key / kKeyBlock) * packed_block(p);
  const Panel* panels = panels_of(p, at.batch, at.query);
  for (int64_t lane = 0; lane < at.count; lane += kPanel) {
    const Span seen = seen_keys(panels[lane / kPanel], key, count);
    if (seen.begin >= seen.end) continue;
    const Span rows{seen.begin / kDepth * kDepth, round_up(seen.end, kDepth)};
    for (int64_t j = rows.begin; j < rows.end; j += kDepth) {
      score_tiles({keys.data + j * keys.row, keys.row}, s.queries + lane, query_pairs(p),
                  s.floats.scores + j * kQueryBlock + lane);
    }
    const bool changed = weigh_pairs(p, at, lane, key, rows, s);
    for (int64_t e = 0; e < p.value_width; ++e) {
      if (!changed) break;
      float* row = s.floats.output + e * kQueryBlock + lane;
      const float* change = s.floats.change + lane;
      unrolled<Simd::kScoreVectors>([&](auto v) __attribute__((always_inline)) {
        Simd::store(row + v * kWidth,
                    Simd::load(row + v * kWidth) * Simd::load(change + v * kWidth));
      });
    }
    for (int64_t e = 0; e < p.value_width; e += 2 * kTile) {
      value_tiles(values + e * kKeyBlock, s.weights + lane, rows, e + kTile < p.value_width,
                  s.floats.output + e * kQueryBlock + lane);
    }
  }
}

inline void pair_queries(const Problem& p, const Place& at, const AmxScratch& s) {
  const int64_t depth = depth_of(p);
  for (int64_t i = 0; i < kQueryBlock; i += kTile) {
    const int64_t count = larger(0, smaller(kTile, at.count - i));
    uint16_t* rows = s.keys;  // not in use yet
    pad_rows(p.query, at.batch, at.head, at.query + i, count, kTile, depth, rows);
    for (int64_t d = 0; d < depth / 2; d += kTile) {
      transpose_bits(reinterpret_cast<const uint32_t*>(rows) + d, depth / 2,
                     s.queries + d * kQueryBlock + i, kQueryBlock);
    }
  }
}

inline void amx_forward(const Problem& p, int64_t batch, int64_t head, int64_t query_block,
                        float* memory) {
  const FlushDenormals flush;
  const Tiles tiles;
  const int64_t query = query_block * kQueryBlock;
  const Place at{batch, head, query, query_count(p, query)};
  AmxScratch s = carve_amx(p, memory);
  pair_queries(p, at, s);
  fill(s.floats.output, kQueryBlock * p.value_width, 0);
  fill(s.floats.max, kQueryBlock, p.sink == nullptr ? kLowest : p.sink[head]);
  fill(s.floats.sum, kQueryBlock, p.sink == nullptr ? 0.0F : 1.0F);
  const Span seen = seen_keys(p, batch, query, at.count, 0, p.sizes.keys);
  const int64_t first = seen.begin < seen.end ? seen.begin / kKeyBlock * kKeyBlock : seen.end;
  for (int64_t key = first; key < seen.end; key += kKeyBlock) {
    visit_tiles(p, at, key, smaller(kKeyBlock, p.sizes.keys - key), s);
  }
  const auto* output = reinterpret_cast<const uint32_t*>(s.floats.output);
  for (int64_t e = 0; e < p.value_width; e += kTile) {
    for (int64_t i = 0; i < kQueryBlock; i += kTile) {
      transpose_bits(output + e * kQueryBlock + i, kQueryBlock,
                     reinterpret_cast<uint32_t*>(s.rows) + i * p.value_width + e, p.value_width);
    }
  }
  s.floats.output = s.rows;
  finish(p, at, s.floats);
}

}  // namespace
}  // namespace autosp::executor::attention

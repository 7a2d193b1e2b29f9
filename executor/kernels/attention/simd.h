// Vectors of floats and the products of small matrices, for one instruction set at a time. Included
// by one source file per instruction set, which is compiled for it; everything here has internal
// linkage, so that no function of one ends up in the other.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define AUTOSP_AI inline __attribute__((always_inline))

namespace autosp::executor::attention {
namespace {

// 2^f for f in [0, 1), relative error 7.5e-8: a polynomial of degree 5.
template <typename S, typename V>
AUTOSP_AI V exp2_of_fraction(V f) {
  V p = S::set(1.87757665e-3F);
  p = S::fma(p, f, S::set(8.989340199e-3F));
  p = S::fma(p, f, S::set(5.582631791e-2F));
  p = S::fma(p, f, S::set(2.401536171e-1F));
  p = S::fma(p, f, S::set(6.931530732e-1F));
  return S::fma(p, f, S::set(9.999999251e-1F));
}

#if defined(__AVX512F__)

struct Simd {
  using V = __m512;
  static constexpr int kWidth = 16;
  // Scores: keys x vectors of queries; sums: rows x vectors of columns. They fill the registers.
  static constexpr int kScoreRows = 8;
  static constexpr int kScoreVectors = 3;
  static constexpr int kSumRows = 6;
  static constexpr int kSumVectors = 4;
  static AUTOSP_AI V zero() { return _mm512_setzero_ps(); }
  static AUTOSP_AI V set(float x) { return _mm512_set1_ps(x); }
  static AUTOSP_AI V load(const float* p) { return _mm512_loadu_ps(p); }
  static AUTOSP_AI void store(float* p, V x) { _mm512_storeu_ps(p, x); }
  static AUTOSP_AI V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static AUTOSP_AI V max(V a, V b) { return _mm512_max_ps(a, b); }
  static AUTOSP_AI float sum(V x) { return _mm512_reduce_add_ps(x); }
  // Words of 32 bits, and the halves of their products with one.
  using U = __m512i;
  static AUTOSP_AI U words(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static AUTOSP_AI U load(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static AUTOSP_AI void store(uint32_t* p, U x) { _mm512_storeu_si512(p, x); }
  static AUTOSP_AI void multiply(U x, uint32_t factor, U& high, U& low) {
    const U even = _mm512_mul_epu32(x, words(factor));
    const U odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), words(factor));
    high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
    low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  }
  // 2^x for x <= 127 or so: x less its floor by a polynomial, the floor into the exponent.
  static AUTOSP_AI V exp2(V x) {
    const V f = _mm512_reduce_ps(x, 0x09);
    const V p = exp2_of_fraction<Simd>(f);
    return _mm512_scalef_ps(p, x);
  }
};

#elif defined(__AVX2__) && defined(__FMA__)

struct Simd {
  using V = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kScoreRows = 6;
  static constexpr int kScoreVectors = 2;
  static constexpr int kSumRows = 6;
  static constexpr int kSumVectors = 2;
  static AUTOSP_AI V zero() { return _mm256_setzero_ps(); }
  static AUTOSP_AI V set(float x) { return _mm256_set1_ps(x); }
  static AUTOSP_AI V load(const float* p) { return _mm256_loadu_ps(p); }
  static AUTOSP_AI void store(float* p, V x) { _mm256_storeu_ps(p, x); }
  static AUTOSP_AI V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static AUTOSP_AI V max(V a, V b) { return _mm256_max_ps(a, b); }
  static AUTOSP_AI float sum(V x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  // As above.
  using U = __m256i;
  static AUTOSP_AI U words(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static AUTOSP_AI U load(const uint32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const U*>(p));
  }
  static AUTOSP_AI void store(uint32_t* p, U x) { _mm256_storeu_si256(reinterpret_cast<U*>(p), x); }
  static AUTOSP_AI void multiply(U x, uint32_t factor, U& high, U& low) {
    const U even = _mm256_mul_epu32(x, words(factor));
    const U odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), words(factor));
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  }
  // As above; the exponent is put in by hand, so x is kept above -126 and what was below is 0.
  static AUTOSP_AI V exp2(V x) {
    const V low = _mm256_cmp_ps(x, set(-126.0F), _CMP_LT_OQ);
    const V n = _mm256_floor_ps(x);
    const V f = _mm256_sub_ps(x, n);
    const V p = exp2_of_fraction<Simd>(f);
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    const V scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
    const V nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    return _mm256_blendv_ps(_mm256_andnot_ps(low, scaled), x, nan);
  }
};

#else

struct Scalar {
  static AUTOSP_AI float set(float x) { return x; }
  static AUTOSP_AI float fma(float a, float b, float c) { return a * b + c; }
};

// What every compiler makes something of.
struct Simd {
  static constexpr int kWidth = 4;
  static constexpr int kScoreRows = 6;
  static constexpr int kScoreVectors = 2;
  static constexpr int kSumRows = 6;
  static constexpr int kSumVectors = 2;
  using V = float __attribute__((vector_size(16)));
  static AUTOSP_AI V zero() { return V{0, 0, 0, 0}; }
  static AUTOSP_AI V set(float x) { return V{x, x, x, x}; }
  static AUTOSP_AI V load(const float* p) {
    V x;
    __builtin_memcpy(&x, p, sizeof(x));
    return x;
  }
  static AUTOSP_AI void store(float* p, V x) { __builtin_memcpy(p, &x, sizeof(x)); }
  static AUTOSP_AI V fma(V a, V b, V c) { return a * b + c; }
  static AUTOSP_AI V max(V a, V b) { return a > b ? a : b; }
  static AUTOSP_AI float sum(V x) { return x[0] + x[1] + (x[2] + x[3]); }
  using U = uint32_t __attribute__((vector_size(16)));
  static AUTOSP_AI U words(uint32_t x) { return U{x, x, x, x}; }
  static AUTOSP_AI U load(const uint32_t* p) {
    U x;
    __builtin_memcpy(&x, p, sizeof(x));
    return x;
  }
  static AUTOSP_AI void store(uint32_t* p, U x) { __builtin_memcpy(p, &x, sizeof(x)); }
  static AUTOSP_AI void multiply(U x, uint32_t factor, U& high, U& low) {
    for (int l = 0; l < kWidth; ++l) {
      const uint64_t product = uint64_t{factor} * x[l];
      high[l] = static_cast<uint32_t>(product >> 32U);
      low[l] = static_cast<uint32_t>(product);
    }
  }
  static AUTOSP_AI float exp2(float x) {
    if (!(x >= -126.0F)) return x < -126.0F ? 0.0F : x;
    const float n = __builtin_floorf(x);
    const float f = x - n;
    const auto p = exp2_of_fraction<Scalar>(f);
    return std::bit_cast<float>(std::bit_cast<int32_t>(p) + (static_cast<int32_t>(n) << 23));
  }
  static AUTOSP_AI V exp2(V x) { return V{exp2(x[0]), exp2(x[1]), exp2(x[2]), exp2(x[3])}; }
};

#endif

using V = Simd::V;
inline constexpr int64_t kWidth = Simd::kWidth;
inline constexpr int64_t kPanel = Simd::kScoreVectors * kWidth;
inline constexpr float kLog2E = 1.44269504F;

AUTOSP_AI V exp_of(V x) { return Simd::exp2(x * Simd::set(kLog2E)); }

// Calls f(integral_constant<int, 0>), f(integral_constant<int, 1>), ... without a loop.
template <typename F, int... I>
AUTOSP_AI void unrolled(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, typename F>
AUTOSP_AI void unrolled(F&& f) {
  unrolled(f, std::make_integer_sequence<int, N>{});
}

// The product every kernel is made of: c (R rows of N vectors) += a (R x K) b (K x N vectors). a is
// read element by element, row i and column k at a[i * row + k * column]; b by rows.
struct Strided {
  const float* data;
  int64_t row;
  int64_t column;
};

template <int R, int N>
AUTOSP_AI void multiply(V (&c)[R * N], Strided a, const float* b, int64_t b_row, int64_t depth) {
  const float* x = a.data;
#pragma GCC unroll 1
  for (int64_t k = 0; k < depth; ++k) {
    V row[N];
    unrolled<N>([&](auto v)
                    __attribute__((always_inline)) { row[v] = Simd::load(b + v * kWidth); });
    unrolled<R>([&](auto i) __attribute__((always_inline)) {
      const V element = Simd::set(x[i * a.row]);
      unrolled<N>([&](auto v) __attribute__((always_inline)) {
        c[i * N + v] = Simd::fma(element, row[v], c[i * N + v]);
      });
    });
    x += a.column;
    b += b_row;
  }
}

// c (R x N vectors, in memory) += a b.
template <int R, int N>
__attribute__((noinline)) void add_tile(Strided a, const float* b, int64_t b_row, int64_t depth,
                                        float* c, int64_t c_row) {
  V sums[R * N];
  unrolled<R * N>([&](auto x) __attribute__((always_inline)) {
    sums[x] = Simd::load(c + (x / N) * c_row + (x % N) * kWidth);
  });
  multiply<R, N>(sums, a, b, b_row, depth);
  unrolled<R * N>([&](auto x) __attribute__((always_inline)) {
    Simd::store(c + (x / N) * c_row + (x % N) * kWidth, sums[x]);
  });
}

template <int N>
AUTOSP_AI void add_columns(int64_t rows, Strided a, const float* b, int64_t b_row, int64_t depth,
                           float* c, int64_t c_row) {
  constexpr int kRows = Simd::kSumRows;
  int64_t i = 0;
  const auto tile = [&](auto count) __attribute__((always_inline)) {
    add_tile<count, N>({a.data + i * a.row, a.row, a.column}, b, b_row, depth, c + i * c_row,
                       c_row);
  };
  for (; i + kRows <= rows; i += kRows) tile(std::integral_constant<int, kRows>{});
  if (i + 4 <= rows) {
    tile(std::integral_constant<int, 4>{});
    i += 4;
  }
  if (i + 2 <= rows) {
    tile(std::integral_constant<int, 2>{});
    i += 2;
  }
  if (i < rows) tile(std::integral_constant<int, 1>{});
}

// c (rows x columns) += a b; columns are a multiple of the vector. What is read of b for one column
// of tiles stays in the first cache.
inline void add_product(int64_t rows, int64_t columns, Strided a, const float* b, int64_t b_row,
                        int64_t depth, float* c, int64_t c_row) {
  constexpr int kVectors = Simd::kSumVectors;
  int64_t n = 0;
  for (; n + kVectors * kWidth <= columns; n += kVectors * kWidth) {
    add_columns<kVectors>(rows, a, b + n, b_row, depth, c + n, c_row);
  }
  if constexpr (kVectors > 2) {
    for (; n + 2 * kWidth <= columns; n += 2 * kWidth) {
      add_columns<2>(rows, a, b + n, b_row, depth, c + n, c_row);
    }
  }
  for (; n < columns; n += kWidth) add_columns<1>(rows, a, b + n, b_row, depth, c + n, c_row);
}

AUTOSP_AI int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
AUTOSP_AI int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Results below the smallest normal number are 0 while this lives: exponentials have many.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040U); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FlushDenormals() {}
  ~FlushDenormals() {}
#endif
};

}  // namespace
}  // namespace autosp::executor::attention

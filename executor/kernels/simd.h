// Loops that the compiler vectorizes, once per instruction set, chosen when the program starts.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

// Before a function: compiled for AVX-512, for AVX2 and for the baseline. Sanitizers instrument the
// choice itself, which runs before they are ready.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define AUTOSP_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define AUTOSP_SIMD
#endif
#define AUTOSP_INLINE inline __attribute__((always_inline))

namespace autosp::executor {

// exp(x), relative error below 2e-7: 2^n * p(r) with x = n ln 2 + r, |r| <= ln 2 / 2, and the
// Taylor polynomial of degree 7 for p. Below the smallest normal number: 0.
AUTOSP_INLINE float simd_exp(float x) {
  constexpr float kMagic = 0x1.8p23F;  // adding it rounds to an integer, in the low bits
  const float high = x > 88.72F ? 88.72F : x;
  const float clamped = high < -87.33F ? -87.33F : high;
  const float shifted = clamped * 1.44269504F + kMagic;
  const float n = shifted - kMagic;
  // ln 2 in two parts, the first with few bits, so that n times it is exact.
  const float r = (clamped - n * 0x1.62e4p-1F) - n * 1.42860682e-6F;
  float p = 1.0F / 5040;
  p = p * r + 1.0F / 720;
  p = p * r + 1.0F / 120;
  p = p * r + 1.0F / 24;
  p = p * r + 1.0F / 6;
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  const auto exponent = std::bit_cast<uint32_t>(shifted) << 23U;  // of the low bits only
  const float result = std::bit_cast<float>(std::bit_cast<uint32_t>(p) + exponent);
  const float with_overflow = x > 88.72F ? std::numeric_limits<float>::infinity() : result;
  const float with_underflow = x < -87.33F ? 0.0F : with_overflow;
  return x != x ? x : with_underflow;
}

AUTOSP_INLINE float simd_sigmoid(float x) { return 1.0F / (1.0F + simd_exp(-x)); }

// Near zero the quotient would cancel: there, the odd Taylor polynomial of degree 11.
AUTOSP_INLINE float simd_tanh(float x) {
  const float magnitude = x < 0 ? -x : x;
  const float square = x * x;
  float p = -1382.0F / 155925;
  p = p * square + 62.0F / 2835;
  p = p * square - 17.0F / 315;
  p = p * square + 2.0F / 15;
  p = p * square - 1.0F / 3;
  const float near_zero = x + x * square * p;
  const float far = 1.0F - 2.0F / (simd_exp(2 * magnitude) + 1.0F);
  const float signed_far = x < 0 ? -far : far;
  const float result = magnitude < 0.3F ? near_zero : signed_far;
  return x != x ? x : result;
}

// Lanes of a sum that does not depend on the order the compiler likes.
inline constexpr int64_t kLanes = 16;

}  // namespace autosp::executor

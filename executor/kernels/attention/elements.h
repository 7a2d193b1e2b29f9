// Elements as a graph holds them, and as floats in whole vectors. See simd.h for how this is
// compiled.
#pragma once

#include "executor/kernels/attention/blocks.h"
#include "executor/kernels/attention/simd.h"
#include "ir/tensor.h"

namespace autosp::executor::attention {
namespace {

// 16-bit floats, by their bits.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

AUTOSP_AI float as_float(float x) { return x; }
AUTOSP_AI float as_float(BFloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}
AUTOSP_AI float as_float(Float16 x) { return ir::float16_to_float(x.bits); }

AUTOSP_AI void round_to(float* to, float x) { *to = x; }
AUTOSP_AI void round_to(BFloat16* to, float x) {
  // To nearest, ties to even; NaN stays one.
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  to->bits = static_cast<uint16_t>(x == x ? rounded : (bits >> 16) | 0x40U);
}
AUTOSP_AI void round_to(Float16* to, float x) { to->bits = ir::float_to_float16(x); }

// Calls f with `data` as what it points to.
template <typename F>
AUTOSP_AI void with_elements(ir::DataType type, const void* data, F&& f) {
  switch (type) {
    case ir::DataType::kBFloat16:
      return f(static_cast<const BFloat16*>(data));
    case ir::DataType::kFloat16:
      return f(static_cast<const Float16*>(data));
    default:
      return f(static_cast<const float*>(data));
  }
}

template <typename T>
AUTOSP_AI void widen(const T* from, int64_t count, float* to) {
  for (int64_t k = 0; k < count; ++k) to[k] = as_float(from[k]);
}
template <typename T>
AUTOSP_AI void narrow(const float* from, int64_t count, float factor, T* to) {
  for (int64_t k = 0; k < count; ++k) round_to(to + k, factor * from[k]);
}

#if defined(__AVX512F__)
AUTOSP_AI void widen(const Float16* from, int64_t count, float* to) {
  for (int64_t k = 0; k < count; k += 16) {
    const __mmask16 mask =
        count - k >= 16 ? 0xffff : static_cast<__mmask16>((1U << (count - k)) - 1);
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, from + k);
    _mm512_mask_storeu_ps(to + k, mask, _mm512_cvtph_ps(bits));
  }
}
AUTOSP_AI void narrow(const float* from, int64_t count, float factor, Float16* to) {
  for (int64_t k = 0; k < count; k += 16) {
    const __mmask16 mask =
        count - k >= 16 ? 0xffff : static_cast<__mmask16>((1U << (count - k)) - 1);
    const __m512 x = _mm512_maskz_loadu_ps(mask, from + k) * _mm512_set1_ps(factor);
    _mm256_mask_storeu_epi16(to + k, mask, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
}
#endif

// Whether some array is not plain.
inline bool widens(const Problem& p) {
  return p.type != ir::DataType::kFloat32 || p.width != p.sizes.width ||
         p.value_width != p.sizes.value_width;
}

// Rows of floats, in whole vectors.
struct FloatRows {
  const float* data;
  int64_t row;
};

// Rows [row, row + count) of one head: in place where they are plain, else widened to `copy`, of
// `count` rows of the padded width.
inline FloatRows floats_of(const Array& array, int64_t batch, int64_t head, int64_t row,
                           int64_t count, float* copy) {
  const std::byte* first = array.at(batch, head, row);
  if (array.is_plain()) return {reinterpret_cast<const float*>(first), array.width};
  const int64_t wide = round_up(array.width, kLanes);
  with_elements(
      array.type, first, [&](const auto* from) __attribute__((always_inline)) {
        for (int64_t i = 0; i < count; ++i) {
          float* to = copy + i * wide;
          widen(from + i * array.width, array.width, to);
          for (int64_t d = array.width; d < wide; ++d) to[d] = 0;
        }
      });
  return {copy, wide};
}

// `factor` times the first `array.width` floats, rounded to its type.
inline void store_row(const Array& array, int64_t batch, int64_t head, int64_t row,
                      const float* from, float factor) {
  std::byte* to = array.at(batch, head, row);
  with_elements(
      array.type, to, [&](const auto* type) __attribute__((always_inline)) {
        using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
        narrow(from, array.width, factor, reinterpret_cast<T*>(to));
      });
}

}  // namespace
}  // namespace autosp::executor::attention

// Element types as kernels see them, on the device and, in tests, on the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "base/error.h"
#include "ir/tensor.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define AUTOSP_DEVICE __host__ __device__
#define AUTOSP_DEVICE_ONLY __device__  // of the emulated device: the host's
#else
#define AUTOSP_DEVICE
#define AUTOSP_DEVICE_ONLY
#endif

// Before a loop over an array that is to be in registers.
#if defined(__CUDA_ARCH__)
#define AUTOSP_UNROLL _Pragma("unroll")
#else
#define AUTOSP_UNROLL
#endif

namespace autosp::kernels {

// Of float and of double, on host and device alike.
using std::acos, std::acosh, std::asin, std::asinh, std::atan, std::atanh, std::ceil, std::cos;
using std::cosh, std::erf, std::exp, std::expm1, std::fabs, std::floor, std::log, std::log1p;
using std::nearbyint, std::pow, std::sin, std::sinh, std::sqrt, std::tan, std::tanh;

// 16-bit floats: stored rounded to nearest even, computed with as float.
struct Float16 {
  uint16_t bits;
  Float16() = default;
  AUTOSP_DEVICE explicit Float16(float value) {
#if defined(__CUDA_ARCH__)
    bits = __half_as_ushort(__float2half_rn(value));
#else
    bits = ir::float_to_float16(value);
#endif
  }
  AUTOSP_DEVICE operator float() const {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(bits));
#else
    return ir::float16_to_float(bits);
#endif
  }
};

struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  AUTOSP_DEVICE explicit BFloat16(float value) {
    union {
      float number;
      uint32_t word;
    } u = {value};
    const bool is_nan = (u.word & 0x7FFFFFFFU) > 0x7F800000U;
    const uint32_t rounded = u.word + 0x7FFFU + ((u.word >> 16U) & 1U);
    bits = static_cast<uint16_t>(is_nan ? (u.word >> 16U) | 0x40U : rounded >> 16U);
  }
  AUTOSP_DEVICE operator float() const {
    union {
      uint32_t word;
      float number;
    } u = {static_cast<uint32_t>(bits) << 16U};
    return u.number;
  }
};

template <typename T>
inline constexpr bool kIsHalf = std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>;
template <typename T>
inline constexpr bool kIsFloat = std::is_floating_point_v<T> || kIsHalf<T>;

// What arithmetic is done in, and what sums are kept in.
template <typename T>
using Compute = std::conditional_t<kIsHalf<T>, float, T>;

template <typename T>
constexpr ir::DataType element_type() {
  using enum ir::DataType;
  if constexpr (std::is_same_v<T, float>) return kFloat32;
  if constexpr (std::is_same_v<T, double>) return kFloat64;
  if constexpr (std::is_same_v<T, Float16>) return kFloat16;
  if constexpr (std::is_same_v<T, BFloat16>) return kBFloat16;
  if constexpr (std::is_same_v<T, int64_t>) return kInt64;
  if constexpr (std::is_same_v<T, int32_t>) return kInt32;
  if constexpr (std::is_same_v<T, bool>) return kBool;
}

template <typename... Ts>
struct TypeList {};
using FloatTypes = TypeList<float, double, Float16, BFloat16>;
using IntegerTypes = TypeList<int64_t, int32_t>;
using NumberTypes = TypeList<float, double, Float16, BFloat16, int64_t, int32_t>;

template <typename... Ts>
constexpr bool contains(TypeList<Ts...>, ir::DataType type) {
  return ((element_type<Ts>() == type) || ...);
}

// Calls f(std::type_identity<T>{}) with the T in `Types` that `type` stands for.
template <typename... Ts, typename F>
void visit(TypeList<Ts...>, ir::DataType type, F&& f) {
  const bool found =
      ((element_type<Ts>() == type ? (f(std::type_identity<Ts>{}), true) : false) || ...);
  AUTOSP_CHECK(found, "no kernel for element type {}", ir::name_of(type));
}

struct alignas(16) Bits128 {
  uint64_t word[2];
};

// The same with a type of `bytes` bytes, for kernels that only move elements.
template <typename F>
void visit_width(size_t bytes, F&& f) {
  switch (bytes) {
    case 1:
      return f(std::type_identity<uint8_t>{});
    case 2:
      return f(std::type_identity<uint16_t>{});
    case 4:
      return f(std::type_identity<uint32_t>{});
    case 8:
      return f(std::type_identity<uint64_t>{});
    default:
      AUTOSP_CHECK(bytes == 16, "elements of {} bytes", bytes);
      return f(std::type_identity<Bits128>{});
  }
}
template <typename F>
void visit_bits(ir::DataType type, F&& f) {
  visit_width(ir::element_size(type), std::forward<F>(f));
}

}  // namespace autosp::kernels

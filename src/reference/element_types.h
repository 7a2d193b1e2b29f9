// C++ types of the element types, and dispatch from one to the other.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "base/error.h"
#include "ir/tensor.h"

namespace autosp::reference {

// 16-bit floats: stored rounded to nearest even, computed with as float.
struct Float16 {
  uint16_t bits = 0;
  Float16() = default;
  explicit Float16(float value) : bits(ir::float_to_float16(value)) {}
  operator float() const { return ir::float16_to_float(bits); }
};
struct BFloat16 {
  uint16_t bits = 0;
  BFloat16() = default;
  explicit BFloat16(float value) : bits(ir::float_to_bfloat16(value)) {}
  operator float() const { return ir::bfloat16_to_float(bits); }
};

template <typename T>
inline constexpr bool kIsHalf = std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>;
template <typename T>
inline constexpr bool kIsFloat = std::is_floating_point_v<T> || kIsHalf<T>;

// The type elementwise arithmetic is done in.
template <typename T>
using Compute = std::conditional_t<kIsHalf<T>, float, T>;
// The type sums are kept in: the reference is meant to be closer to the truth than what it checks.
template <typename T>
using Accumulator =
    std::conditional_t<kIsFloat<T>, double,
                       std::conditional_t<std::is_unsigned_v<T>, uint64_t, int64_t>>;

template <typename T>
constexpr ir::DataType element_type() {
  using enum ir::DataType;
  if constexpr (std::is_same_v<T, float>) return kFloat32;
  if constexpr (std::is_same_v<T, double>) return kFloat64;
  if constexpr (std::is_same_v<T, Float16>) return kFloat16;
  if constexpr (std::is_same_v<T, BFloat16>) return kBFloat16;
  if constexpr (std::is_same_v<T, int64_t>) return kInt64;
  if constexpr (std::is_same_v<T, int32_t>) return kInt32;
  if constexpr (std::is_same_v<T, int16_t>) return kInt16;
  if constexpr (std::is_same_v<T, int8_t>) return kInt8;
  if constexpr (std::is_same_v<T, uint64_t>) return kUInt64;
  if constexpr (std::is_same_v<T, uint32_t>) return kUInt32;
  if constexpr (std::is_same_v<T, uint16_t>) return kUInt16;
  if constexpr (std::is_same_v<T, uint8_t>) return kUInt8;
  if constexpr (std::is_same_v<T, bool>) return kBool;
}

template <typename... Ts>
struct TypeList {};
using FloatTypes = TypeList<float, double, Float16, BFloat16>;
using IntegerTypes =
    TypeList<int64_t, int32_t, int16_t, int8_t, uint64_t, uint32_t, uint16_t, uint8_t>;
using NumericTypes = TypeList<float, double, Float16, BFloat16, int64_t, int32_t, int16_t, int8_t,
                              uint64_t, uint32_t, uint16_t, uint8_t>;
using AllTypes = TypeList<float, double, Float16, BFloat16, int64_t, int32_t, int16_t, int8_t,
                          uint64_t, uint32_t, uint16_t, uint8_t, bool>;
using BoolType = TypeList<bool>;
// For kernels that move elements without looking at them: one type per size.
using BitTypes = TypeList<uint8_t, uint16_t, uint32_t, uint64_t>;

// Calls f(std::type_identity<T>{}) with the T in `Types` that `dtype` stands for.
template <typename... Ts, typename F>
void visit(TypeList<Ts...>, ir::DataType dtype, F&& f) {
  const bool found =
      ((element_type<Ts>() == dtype ? (f(std::type_identity<Ts>{}), true) : false) || ...);
  if (!found) throw Error("no kernel for element type {}", ir::name_of(dtype));
}

// The same, with an unsigned integer as wide as the element.
template <typename F>
void visit_bits(ir::DataType dtype, F&& f) {
  switch (ir::element_size(dtype)) {
    case 1:
      return f(std::type_identity<uint8_t>{});
    case 2:
      return f(std::type_identity<uint16_t>{});
    case 4:
      return f(std::type_identity<uint32_t>{});
    case 8:
      return f(std::type_identity<uint64_t>{});
    default:
      throw Error("no kernel for element type {}", ir::name_of(dtype));
  }
}

// Conversion as in Cast. Floats outside an integer's range saturate (ONNX leaves them undefined).
template <typename To, typename From>
To convert(From from) {
  const Compute<From> value = from;
  if constexpr (std::is_same_v<To, bool>) {
    return value != Compute<From>{0};
  } else if constexpr (kIsHalf<To>) {
    return To(static_cast<float>(value));
  } else if constexpr (std::is_integral_v<To> && std::is_floating_point_v<Compute<From>>) {
    if (std::isnan(value)) return 0;
    const auto wide = static_cast<double>(value);
    // Narrow integers wrap, as conversions between integers do.
    using Wide = std::conditional_t<std::is_same_v<To, uint64_t>, uint64_t, int64_t>;
    if (wide >= static_cast<double>(std::numeric_limits<Wide>::max())) {
      return static_cast<To>(std::numeric_limits<Wide>::max());
    }
    if (wide <= static_cast<double>(std::numeric_limits<Wide>::min())) {
      return static_cast<To>(std::numeric_limits<Wide>::min());
    }
    return static_cast<To>(static_cast<Wide>(wide));
  } else {
    return static_cast<To>(value);
  }
}

}  // namespace autosp::reference

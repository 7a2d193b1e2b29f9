// A dense, row-major, immutable tensor in host memory: constants, feeds and results.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "base/error.h"
#include "ir/type.h"

namespace autosp::ir {

template <typename T>
struct DataTypeOf;
template <>
struct DataTypeOf<float> {
  static constexpr DataType value = DataType::kFloat32;
};
template <>
struct DataTypeOf<double> {
  static constexpr DataType value = DataType::kFloat64;
};
template <>
struct DataTypeOf<int64_t> {
  static constexpr DataType value = DataType::kInt64;
};
template <>
struct DataTypeOf<int32_t> {
  static constexpr DataType value = DataType::kInt32;
};
template <>
struct DataTypeOf<int8_t> {
  static constexpr DataType value = DataType::kInt8;
};
template <>
struct DataTypeOf<uint8_t> {
  static constexpr DataType value = DataType::kUInt8;
};
template <>
struct DataTypeOf<bool> {
  static constexpr DataType value = DataType::kBool;
};

// Copies share their bytes. 64-byte aligned.
class Tensor {
 public:
  Tensor() = default;

  // Zero-filled.
  explicit Tensor(Type type);
  // Copies `bytes`, whose size must be type.num_bytes().
  Tensor(Type type, std::span<const std::byte> bytes);

  template <typename T>
  static Tensor from_values(Shape shape, std::span<const T> values) {
    return Tensor(Type{DataTypeOf<T>::value, std::move(shape)}, std::as_bytes(values));
  }
  static Tensor scalar(DataType dtype, double value);  // rank 0
  static Tensor int64s(std::vector<int64_t> values);   // rank 1
  static Tensor filled(Type type, double value);

  const Type& type() const { return type_; }
  const Shape& shape() const { return type_.shape; }
  DataType dtype() const { return type_.dtype; }
  int64_t num_elements() const { return type_.num_elements(); }
  std::span<const std::byte> bytes() const {
    return {bytes_.get(), static_cast<size_t>(type_.num_bytes())};
  }
  // The bytes, for the code that fills a tensor it has just made (and nobody else shares).
  std::byte* mutable_bytes() { return bytes_.get(); }

  template <typename T>
  std::span<const T> values() const {
    AUTOSP_CHECK(DataTypeOf<T>::value == dtype(), "tensor is {}", to_string(type_));
    return {reinterpret_cast<const T*>(bytes_.get()), static_cast<size_t>(num_elements())};
  }
  template <typename T>
  std::span<T> mutable_values() {
    AUTOSP_CHECK(DataTypeOf<T>::value == dtype(), "tensor is {}", to_string(type_));
    return {reinterpret_cast<T*>(bytes_.get()), static_cast<size_t>(num_elements())};
  }

  // Element `index` (row-major) converted to double, for any numeric type.
  double value_as_double(int64_t index) const;
  // All elements of an integer or bool tensor.
  std::vector<int64_t> as_int64s() const;
  bool all_zero() const;

  // The same bytes under another shape of equal element count.
  Tensor reshaped(Shape shape) const;
  // Elements [begin[k], begin[k] + extent[k]) along every axis k.
  Tensor block(std::span<const int64_t> begin, const Shape& extent) const;

  // Same type and bytes.
  bool identical(const Tensor& other) const;

 private:
  Type type_;
  std::shared_ptr<std::byte[]> bytes_;
};

// Tensors of one type but for their extents along `axis`, one after the other along it; at least
// one.
Tensor concat(const std::vector<Tensor>& parts, size_t axis);

// Conversions of 16-bit floats (round to nearest even).
float float16_to_float(uint16_t bits);
uint16_t float_to_float16(float value);
float bfloat16_to_float(uint16_t bits);
uint16_t float_to_bfloat16(float value);

}  // namespace autosp::ir

#include "ir/tensor.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <new>

namespace autosp::ir {

namespace {

constexpr std::align_val_t kAlignment{64};

std::shared_ptr<std::byte[]> allocate(size_t size) {
  auto* bytes = static_cast<std::byte*>(::operator new(std::max<size_t>(size, 1), kAlignment));
  return {bytes, [](std::byte* p) { ::operator delete(p, kAlignment); }};
}

void store(DataType dtype, std::byte* at, double value) {
  auto put = [at](auto typed) { std::memcpy(at, &typed, sizeof(typed)); };
  switch (dtype) {
    case DataType::kFloat32:
      return put(static_cast<float>(value));
    case DataType::kFloat64:
      return put(value);
    case DataType::kFloat16:
      return put(float_to_float16(static_cast<float>(value)));
    case DataType::kBFloat16:
      return put(float_to_bfloat16(static_cast<float>(value)));
    case DataType::kInt64:
      return put(static_cast<int64_t>(value));
    case DataType::kInt32:
      return put(static_cast<int32_t>(value));
    case DataType::kInt16:
      return put(static_cast<int16_t>(value));
    case DataType::kInt8:
      return put(static_cast<int8_t>(value));
    case DataType::kUInt64:
      return put(static_cast<uint64_t>(value));
    case DataType::kUInt32:
      return put(static_cast<uint32_t>(value));
    case DataType::kUInt16:
      return put(static_cast<uint16_t>(value));
    case DataType::kUInt8:
      return put(static_cast<uint8_t>(value));
    case DataType::kBool:
      return put(static_cast<uint8_t>(value != 0));
    case DataType::kString:
    case DataType::kUndefined:
      break;
  }
  AUTOSP_CHECK(false, "no numeric value of type {}", name_of(dtype));
}

double load(DataType dtype, const std::byte* at) {
  auto get = [at](auto typed) {
    std::memcpy(&typed, at, sizeof(typed));
    return typed;
  };
  switch (dtype) {
    case DataType::kFloat32:
      return get(float{});
    case DataType::kFloat64:
      return get(double{});
    case DataType::kFloat16:
      return float16_to_float(get(uint16_t{}));
    case DataType::kBFloat16:
      return bfloat16_to_float(get(uint16_t{}));
    case DataType::kInt64:
      return static_cast<double>(get(int64_t{}));
    case DataType::kInt32:
      return get(int32_t{});
    case DataType::kInt16:
      return get(int16_t{});
    case DataType::kInt8:
      return get(int8_t{});
    case DataType::kUInt64:
      return static_cast<double>(get(uint64_t{}));
    case DataType::kUInt32:
      return get(uint32_t{});
    case DataType::kUInt16:
      return get(uint16_t{});
    case DataType::kUInt8:
    case DataType::kBool:
      return get(uint8_t{});
    case DataType::kString:
    case DataType::kUndefined:
      break;
  }
  internal_error(__FILE__, __LINE__, "no numeric value of this type");
}

}  // namespace

Tensor::Tensor(Type type) : type_(std::move(type)) {
  const auto size = static_cast<size_t>(type_.num_bytes());
  bytes_ = allocate(size);
  std::memset(bytes_.get(), 0, size);
}

Tensor::Tensor(Type type, std::span<const std::byte> bytes) : type_(std::move(type)) {
  AUTOSP_CHECK(static_cast<int64_t>(bytes.size()) == type_.num_bytes(), "{} bytes for {}",
               bytes.size(), to_string(type_));
  bytes_ = allocate(bytes.size());
  if (!bytes.empty()) std::memcpy(bytes_.get(), bytes.data(), bytes.size());
}

Tensor Tensor::filled(Type type, double value) {
  Tensor result(std::move(type));
  const size_t size = element_size(result.dtype());
  for (int64_t k = 0; k < result.num_elements(); ++k) {
    store(result.dtype(), result.bytes_.get() + static_cast<size_t>(k) * size, value);
  }
  return result;
}

Tensor Tensor::scalar(DataType dtype, double value) { return filled(Type{dtype, {}}, value); }

Tensor Tensor::int64s(std::vector<int64_t> values) {
  return from_values<int64_t>({static_cast<int64_t>(values.size())}, values);
}

double Tensor::value_as_double(int64_t index) const {
  return load(dtype(), bytes_.get() + static_cast<size_t>(index) * element_size(dtype()));
}

std::vector<int64_t> Tensor::as_int64s() const {
  if (dtype() == DataType::kInt64) {
    const auto typed = values<int64_t>();
    return {typed.begin(), typed.end()};
  }
  AUTOSP_CHECK(!is_floating(dtype()), "integers wanted, tensor is {}", to_string(type_));
  std::vector<int64_t> result(static_cast<size_t>(num_elements()));
  for (size_t k = 0; k < result.size(); ++k) {
    result[k] = static_cast<int64_t>(value_as_double(static_cast<int64_t>(k)));
  }
  return result;
}

bool Tensor::all_zero() const {
  if (std::ranges::all_of(bytes(), [](std::byte b) { return b == std::byte{0}; })) return true;
  for (int64_t k = 0; k < num_elements(); ++k) {
    if (value_as_double(k) != 0) return false;  // -0.0 is zero and has a set bit
  }
  return true;
}

Tensor Tensor::reshaped(Shape shape) const {
  AUTOSP_CHECK(ir::num_elements(shape) == num_elements());
  Tensor result = *this;
  result.type_.shape = std::move(shape);
  return result;
}

Tensor Tensor::block(std::span<const int64_t> begin, const Shape& extent) const {
  const size_t rank = type_.rank();
  AUTOSP_CHECK(begin.size() == rank && extent.size() == rank);
  Tensor result(Type{dtype(), extent});
  if (result.num_elements() == 0) return result;
  const size_t size = element_size(dtype());
  if (rank == 0) {
    std::memcpy(result.bytes_.get(), bytes_.get(), size);
    return result;
  }
  // Rows of the innermost axis are contiguous in both.
  std::vector<int64_t> strides(rank, 1);
  for (size_t k = rank - 1; k-- > 0;) strides[k] = strides[k + 1] * shape()[k + 1];
  const size_t row = static_cast<size_t>(extent[rank - 1]) * size;
  std::vector<int64_t> index(rank, 0);
  std::byte* to = result.bytes_.get();
  while (true) {
    int64_t offset = 0;
    for (size_t k = 0; k < rank; ++k) offset += (begin[k] + index[k]) * strides[k];
    std::memcpy(to, bytes_.get() + static_cast<size_t>(offset) * size, row);
    to += row;
    size_t k = rank - 1;
    while (k > 0 && ++index[k - 1] == extent[k - 1]) index[--k] = 0;
    if (k == 0) return result;
  }
}

bool Tensor::identical(const Tensor& other) const {
  return type_ == other.type_ && std::ranges::equal(bytes(), other.bytes());
}

Tensor concat(const std::vector<Tensor>& parts, size_t axis) {
  Type type = parts.at(0).type();
  type.shape[axis] = 0;
  for (const Tensor& part : parts) type.shape[axis] += part.shape()[axis];
  Tensor result(type);
  const Shape outer(type.shape.begin(), type.shape.begin() + static_cast<std::ptrdiff_t>(axis));
  std::byte* to = result.mutable_bytes();
  for (int64_t k = 0; k < num_elements(outer); ++k) {
    for (const Tensor& part : parts) {
      const size_t piece = part.bytes().size() / static_cast<size_t>(num_elements(outer));
      to = std::ranges::copy(part.bytes().subspan(static_cast<size_t>(k) * piece, piece), to).out;
    }
  }
  return result;
}

float bfloat16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16U); }

uint16_t float_to_bfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16U) | 0x40U);
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16U) & 1U)) >> 16U);
}

float float16_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000U} << 16U;
  const uint32_t exponent = (bits >> 10U) & 0x1fU;
  const uint32_t mantissa = bits & 0x3ffU;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t widened = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | (widened << 23U) | (mantissa << 13U));
}

uint16_t float_to_float16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16U) & 0x8000U;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7e00U);
  if (magnitude >= 65520.0F) return static_cast<uint16_t>(sign | 0x7c00U);
  if (magnitude < 6.103515625e-05F) {  // subnormal: round magnitude * 2^24
    return static_cast<uint16_t>(sign |
                                 static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, 24))));
  }
  const uint32_t absolute = bits & 0x7fffffffU;
  const uint32_t rounded = absolute + 0xfffU + ((absolute >> 13U) & 1U);
  return static_cast<uint16_t>(sign | ((rounded >> 13U) - (112U << 10U)));
}

}  // namespace autosp::ir

// Element types and shapes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace autosp::ir {

// Numbered as in ONNX's TensorProto.DataType, so that the door converts by a cast.
enum class DataType : uint8_t {
  kUndefined = 0,
  kFloat32 = 1,
  kUInt8 = 2,
  kInt8 = 3,
  kUInt16 = 4,
  kInt16 = 5,
  kInt32 = 6,
  kInt64 = 7,
  kString = 8,
  kBool = 9,
  kFloat16 = 10,
  kFloat64 = 11,
  kUInt32 = 12,
  kUInt64 = 13,
  kBFloat16 = 16,
};

size_t element_size(DataType type);       // bytes
std::string_view name_of(DataType type);  // "float32", "int64", ...
bool is_floating(DataType type);
bool is_integer(DataType type);  // signed or unsigned, bool excluded

// Extents, major to minor. Every extent is known: symbolic dimensions are bound at import.
using Shape = std::vector<int64_t>;

int64_t num_elements(const Shape& shape);
std::string to_string(const Shape& shape);  // "[2, 40, 96]"

// The numpy broadcast of two shapes; throws InternalError when they do not broadcast.
Shape broadcast(const Shape& a, const Shape& b);

// Resolves a possibly negative axis of a rank-`rank` tensor.
inline size_t normalize_axis(int64_t axis, size_t rank) {
  return static_cast<size_t>(axis < 0 ? axis + static_cast<int64_t>(rank) : axis);
}

struct Type {
  DataType dtype = DataType::kUndefined;
  Shape shape;

  size_t rank() const { return shape.size(); }
  int64_t num_elements() const { return ir::num_elements(shape); }
  int64_t num_bytes() const { return num_elements() * static_cast<int64_t>(element_size(dtype)); }
  bool operator==(const Type&) const = default;
};

std::string to_string(const Type& type);  // "float32[2, 40, 96]"

}  // namespace autosp::ir

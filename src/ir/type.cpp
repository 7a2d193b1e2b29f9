#include "ir/type.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"

namespace autosp::ir {

namespace {

struct DataTypeRow {
  DataType type;
  std::string_view name;
  size_t size;
  bool floating;
  bool integer;
};

constexpr DataTypeRow kDataTypes[] = {
    {DataType::kFloat32, "float32", 4, true, false},
    {DataType::kUInt8, "uint8", 1, false, true},
    {DataType::kInt8, "int8", 1, false, true},
    {DataType::kUInt16, "uint16", 2, false, true},
    {DataType::kInt16, "int16", 2, false, true},
    {DataType::kInt32, "int32", 4, false, true},
    {DataType::kInt64, "int64", 8, false, true},
    {DataType::kString, "string", 0, false, false},
    {DataType::kBool, "bool", 1, false, false},
    {DataType::kFloat16, "float16", 2, true, false},
    {DataType::kFloat64, "float64", 8, true, false},
    {DataType::kUInt32, "uint32", 4, false, true},
    {DataType::kUInt64, "uint64", 8, false, true},
    {DataType::kBFloat16, "bfloat16", 2, true, false},
};

const DataTypeRow& row(DataType type) {
  static constexpr DataTypeRow kUnknown = {DataType::kUndefined, "undefined", 0, false, false};
  for (const auto& candidate : kDataTypes) {
    if (candidate.type == type) return candidate;
  }
  return kUnknown;
}

}  // namespace

size_t element_size(DataType type) { return row(type).size; }
std::string_view name_of(DataType type) { return row(type).name; }
bool is_floating(DataType type) { return row(type).floating; }
bool is_integer(DataType type) { return row(type).integer; }

int64_t num_elements(const Shape& shape) {
  // Leaves room for bytes, and for the scaled prices of the planner.
  constexpr int64_t kMost = int64_t{1} << 52;
  int64_t count = 1;
  for (int64_t extent : shape) {
    if (__builtin_mul_overflow(count, extent, &count) || count > kMost) {
      throw Error("a tensor of shape {} is too large", to_string(shape))
          .note("more than 2^52 elements are not supported")
          .help("check the sizes given with --dim");
    }
  }
  return count;
}

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

std::string to_string(const Type& type) {
  return fmt::format("{}{}", name_of(type.dtype), to_string(type.shape));
}

Shape broadcast(const Shape& a, const Shape& b) {
  Shape result(std::max(a.size(), b.size()));
  for (size_t k = 0; k < result.size(); ++k) {
    const int64_t x = k < a.size() ? a[a.size() - 1 - k] : 1;
    const int64_t y = k < b.size() ? b[b.size() - 1 - k] : 1;
    AUTOSP_CHECK(x == y || x == 1 || y == 1, "{} and {} do not broadcast", to_string(a),
                 to_string(b));
    result[result.size() - 1 - k] = x == 1 ? y : x;
  }
  return result;
}

}  // namespace autosp::ir

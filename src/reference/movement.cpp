// Operators that move elements without looking at them.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "reference/call.h"

namespace autosp::reference {

namespace {

// to[...] = from[...] over one index space; the strides say where each element lies.
void copy_strided(const ir::Shape& extents, ir::DataType dtype, void* to, const Strides& to_strides,
                  const void* from, const Strides& from_strides) {
  const StridedLoop<2> loop(extents, {to_strides, from_strides});
  const auto [to_step, from_step] = loop.row_strides();
  const int64_t count = loop.row_extent();
  visit_bits(dtype, [&]<typename T>(std::type_identity<T>) {
    loop.for_each_row([&](const auto& at) {
      T* out = static_cast<T*>(to) + at[0];
      const T* in = static_cast<const T*>(from) + at[1];
      if (to_step == 1 && from_step == 1) {
        std::memcpy(out, in, static_cast<size_t>(count) * sizeof(T));
      } else {
        for (int64_t i = 0; i < count; ++i) out[i * to_step] = in[i * from_step];
      }
    });
  });
}

const void* advanced(const void* data, int64_t elements, ir::DataType dtype) {
  return static_cast<const std::byte*>(data) +
         elements * static_cast<int64_t>(ir::element_size(dtype));
}
void* advanced(void* data, int64_t elements, ir::DataType dtype) {
  return static_cast<std::byte*>(data) + elements * static_cast<int64_t>(ir::element_size(dtype));
}

// Reshape, Squeeze, Unsqueeze, Flatten: the same elements in the same order.
void same_order(const Call& call) {
  const Result& y = call.results[0];
  if (y.data == call.operands[0].data) return;
  std::memcpy(y.data, call.operands[0].data,
              static_cast<size_t>(size_of(y)) * ir::element_size(y.dtype));
}

void transpose(const Call& call) {
  const Operand& x = call.operands[0];
  const Result& y = call.results[0];
  const size_t rank = x.shape->size();
  std::vector<int64_t> permutation = call.node.attributes.get_ints("perm");
  if (permutation.empty()) {
    permutation.resize(rank);
    std::iota(permutation.rbegin(), permutation.rend(), 0);
  }
  const Strides own = row_major_strides(*x.shape);
  Strides from(rank);
  for (size_t k = 0; k < rank; ++k) from[k] = own[static_cast<size_t>(permutation[k])];
  copy_strided(*y.shape, y.dtype, y.data, row_major_strides(*y.shape), x.data, from);
}

void expand(const Call& call) {
  const Operand& x = call.operands[0];
  const Result& y = call.results[0];
  copy_strided(*y.shape, y.dtype, y.data, row_major_strides(*y.shape), x.data,
               broadcast_strides(*x.shape, *y.shape));
}

void concat(const Call& call) {
  const Result& y = call.results[0];
  const size_t axis = axis_attribute(call, "axis", 0, y.shape->size());
  const Strides to = row_major_strides(*y.shape);
  int64_t begin = 0;
  for (const Operand& part : call.operands) {
    copy_strided(*part.shape, y.dtype, advanced(y.data, begin * to[axis], y.dtype), to, part.data,
                 row_major_strides(*part.shape));
    begin += (*part.shape)[axis];
  }
}

// The parts' extents are those of the results.
void split(const Call& call) {
  const Operand& x = call.operands[0];
  const size_t axis = axis_attribute(call, "axis", 0, x.shape->size());
  const Strides from = row_major_strides(*x.shape);
  int64_t begin = 0;
  for (const Result& part : call.results) {
    AUTOSP_CHECK(part, "an absent result of Split");
    copy_strided(*part.shape, x.dtype, part.data, row_major_strides(*part.shape),
                 advanced(x.data, begin * from[axis], x.dtype), from);
    begin += (*part.shape)[axis];
  }
}

// Operands: data, starts, ends, axes?, steps?. Out-of-range bounds are clamped, as in numpy; the
// extents are those of the result.
void slice(const Call& call) {
  const Operand& x = call.operands[0];
  const Result& y = call.results[0];
  const ir::Shape& shape = *x.shape;
  const std::vector<int64_t> starts = integers(call.operands[1]);
  std::vector<int64_t> axes(starts.size());
  std::iota(axes.begin(), axes.end(), 0);
  if (has_operand(call, 3)) axes = integers(call.operands[3]);
  std::vector<int64_t> steps(starts.size(), 1);
  if (has_operand(call, 4)) steps = integers(call.operands[4]);

  Strides from = row_major_strides(shape);
  int64_t offset = 0;
  for (size_t k = 0; k < starts.size(); ++k) {
    const size_t axis = ir::normalize_axis(axes[k], shape.size());
    const int64_t extent = shape[axis];
    int64_t start = starts[k] < 0 ? starts[k] + extent : starts[k];
    start = std::clamp<int64_t>(start, 0, steps[k] > 0 ? extent : std::max<int64_t>(extent - 1, 0));
    offset += start * from[axis];
    from[axis] *= steps[k];
  }
  copy_strided(*y.shape, y.dtype, y.data, row_major_strides(*y.shape),
               advanced(x.data, offset, x.dtype), from);
}

struct Padding {
  std::vector<int64_t> before;
  std::vector<int64_t> after;
};

// Operands: data, pads, value?, axes?.
Padding padding_of(const Call& call) {
  const size_t rank = call.operands[0].shape->size();
  const std::vector<int64_t> pads = integers(call.operands[1]);
  Padding padding{std::vector<int64_t>(rank, 0), std::vector<int64_t>(rank, 0)};
  std::vector<int64_t> axes(rank);
  std::iota(axes.begin(), axes.end(), 0);
  if (has_operand(call, 3)) axes = integers(call.operands[3]);
  for (size_t k = 0; k < axes.size(); ++k) {
    const size_t axis = ir::normalize_axis(axes[k], rank);
    padding.before[axis] = pads[k];
    padding.after[axis] = pads[k + axes.size()];
  }
  return padding;
}

// A negative pad removes elements.
void pad_constant(const Call& call, const Padding& padding) {
  const Operand& x = call.operands[0];
  const Result& y = call.results[0];
  visit_bits(y.dtype, [&]<typename T>(std::type_identity<T>) {
    const T value = has_operand(call, 2) ? *data<T>(call.operands[2]) : T{0};
    std::fill_n(data<T>(y), size_of(y), value);
  });
  const Strides from = row_major_strides(*x.shape);
  const Strides to = row_major_strides(*y.shape);
  ir::Shape kept = *x.shape;
  int64_t from_offset = 0;
  int64_t to_offset = 0;
  for (size_t k = 0; k < kept.size(); ++k) {
    const int64_t before = padding.before[k];
    kept[k] = std::max<int64_t>(
        0, kept[k] + std::min<int64_t>(before, 0) + std::min<int64_t>(padding.after[k], 0));
    from_offset += std::max<int64_t>(-before, 0) * from[k];
    to_offset += std::max<int64_t>(before, 0) * to[k];
  }
  copy_strided(kept, y.dtype, advanced(y.data, to_offset, y.dtype), to,
               advanced(x.data, from_offset, x.dtype), from);
}

// Where position `at` (possibly outside) of an axis is read from.
int64_t padded_source(const std::string& mode, int64_t at, int64_t extent) {
  if (mode == "edge") return std::clamp<int64_t>(at, 0, extent - 1);
  if (mode == "wrap") return ((at % extent) + extent) % extent;
  if (mode != "reflect") throw Error("Pad has no mode \"{}\"", mode);
  if (extent == 1) return 0;
  const int64_t period = 2 * (extent - 1);
  const int64_t folded = ((at % period) + period) % period;
  return folded < extent ? folded : period - folded;
}

void pad_from_itself(const Call& call, const Padding& padding, const std::string& mode) {
  const Operand& x = call.operands[0];
  const Result& y = call.results[0];
  const Strides from = row_major_strides(*x.shape);
  const size_t rank = from.size();
  std::vector<std::vector<int64_t>> source(rank);  // per axis and position, in elements of x
  for (size_t k = 0; k < rank; ++k) {
    for (int64_t i = 0; i < (*y.shape)[k]; ++i) {
      source[k].push_back(from[k] * padded_source(mode, i - padding.before[k], (*x.shape)[k]));
    }
  }
  visit_bits(y.dtype, [&]<typename T>(std::type_identity<T>) {
    const int64_t count = size_of(y);
    std::vector<size_t> index(rank, 0);
    for (int64_t i = 0; i < count; ++i) {
      int64_t offset = 0;
      for (size_t k = 0; k < rank; ++k) offset += source[k][index[k]];
      data<T>(y)[i] = data<T>(x)[offset];
      for (size_t k = rank; k > 0 && ++index[k - 1] == source[k - 1].size(); --k) index[k - 1] = 0;
    }
  });
}

void pad(const Call& call) {
  const Padding padding = padding_of(call);
  const std::string mode = call.node.attributes.get_string("mode", "constant");
  if (mode == "constant") {
    pad_constant(call, padding);
  } else {
    pad_from_itself(call, padding, mode);
  }
}

// An index space with each axis split into (repeat, extent); repeats have stride zero.
void tile(const Call& call) {
  const Operand& x = call.operands[0];
  const Result& y = call.results[0];
  const std::vector<int64_t> repeats = integers(call.operands[1]);
  const Strides own = row_major_strides(*x.shape);
  ir::Shape extents;
  Strides from;
  for (size_t k = 0; k < repeats.size(); ++k) {
    extents.insert(extents.end(), {repeats[k], (*x.shape)[k]});
    from.insert(from.end(), {0, own[k]});
  }
  copy_strided(extents, y.dtype, y.data, row_major_strides(extents), x.data, from);
}

// Keeps the triangle on and below (above, if `upper`) diagonal k of the last two axes.
void trilu(const Call& call) {
  const Operand& x = call.operands[0];
  const Result& y = call.results[0];
  const ir::Shape& shape = *x.shape;
  const bool upper = call.node.attributes.get_int("upper", 1) != 0;
  const int64_t diagonal = has_operand(call, 1) ? integers(call.operands[1])[0] : 0;
  const int64_t rows = shape[shape.size() - 2];
  const int64_t columns = shape.back();
  visit_bits(y.dtype, [&]<typename T>(std::type_identity<T>) {
    const int64_t count = size_of(y);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t above = i % columns - (i / columns) % rows;  // column - row
      const bool kept = upper ? above >= diagonal : above <= diagonal;
      data<T>(y)[i] = kept ? data<T>(x)[i] : T{0};
    }
  });
}

constexpr KernelRow kRows[] = {
    {"Reshape", same_order},
    {"Squeeze", same_order},
    {"Unsqueeze", same_order},
    {"Flatten", same_order},
    {"Transpose", transpose},
    {"Expand", expand},
    {"Concat", concat},
    {"Split", split},
    {"Slice", slice},
    {"Pad", pad},
    {"Tile", tile},
    {"Trilu", trilu},
};

}  // namespace

std::span<const KernelRow> movement_kernels() { return kRows; }

}  // namespace autosp::reference

// Operators that move elements without looking at them.
#include <algorithm>
#include <numeric>

#include "cuda/kernels/copy.h"
#include "cuda/kernels/map.h"
#include "cuda/kernels/rows.h"

namespace autosp::kernels {

namespace {

void same_order(const executor::KernelCall& call) {
  const auto& y = call.call.results[0];
  copy_bytes(Queue(call), y.data, call.call.operands[0].data,
             ir::num_elements(*y.shape) * static_cast<int64_t>(ir::element_size(y.dtype)));
}

// From operand 0 read with these strides to a row-major result.
void gather_strided(const executor::KernelCall& call, const Strides& from, int64_t offset = 0) {
  const auto& y = call.call.results[0];
  copy(Queue(call), {.shape = *y.shape,
                     .element_size = ir::element_size(y.dtype),
                     .to = y.data,
                     .to_strides = row_major_strides(*y.shape),
                     .from = call.call.operands[0].data,
                     .from_strides = from,
                     .from_offset = offset});
}

void transpose(const executor::KernelCall& call) {
  const ir::Shape& x = *call.call.operands[0].shape;
  std::vector<int64_t> permutation = call.call.node.attributes.get_ints("perm");
  if (permutation.empty()) {
    permutation.resize(x.size());
    std::iota(permutation.rbegin(), permutation.rend(), 0);
  }
  const Strides own = row_major_strides(x);
  Strides from;
  for (const int64_t axis : permutation) from.push_back(own[static_cast<size_t>(axis)]);
  gather_strided(call, from);
}

void expand(const executor::KernelCall& call) {
  gather_strided(call,
                 broadcast_strides(*call.call.operands[0].shape, *call.call.results[0].shape));
}

size_t axis_of(const executor::KernelCall& call, size_t rank) {
  return ir::normalize_axis(call.call.node.attributes.get_int("axis", 0), rank);
}

void concat(const executor::KernelCall& call) {
  const auto& y = call.call.results[0];
  const size_t axis = axis_of(call, y.shape->size());
  const Strides to = row_major_strides(*y.shape);
  int64_t begin = 0;
  for (const auto& part : call.call.operands) {
    copy(Queue(call), {.shape = *part.shape,
                       .element_size = ir::element_size(y.dtype),
                       .to = y.data,
                       .to_strides = to,
                       .to_offset = begin * to[axis],
                       .from = part.data,
                       .from_strides = row_major_strides(*part.shape)});
    begin += (*part.shape)[axis];
  }
}

void split(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const size_t axis = axis_of(call, x.shape->size());
  const Strides from = row_major_strides(*x.shape);
  int64_t begin = 0;
  for (const auto& part : call.call.results) {
    copy(Queue(call), {.shape = *part.shape,
                       .element_size = ir::element_size(x.dtype),
                       .to = part.data,
                       .to_strides = row_major_strides(*part.shape),
                       .from = x.data,
                       .from_strides = from,
                       .from_offset = begin * from[axis]});
    begin += (*part.shape)[axis];
  }
}

std::vector<int64_t> axes_or_all(const executor::KernelCall& call, size_t operand, size_t count) {
  if (call.call.node.input(operand)) return known(call, operand);
  std::vector<int64_t> axes(count);
  std::iota(axes.begin(), axes.end(), 0);
  return axes;
}

bool bounds_are_known(const ir::Graph& graph, const ir::Node& node) {
  for (size_t k = 1; k < node.inputs.size(); ++k) {
    if (!is_known(graph, node, k)) return false;
  }
  return true;
}

// Operands: data, starts, ends, axes?, steps?. The extents are those of the result.
void slice(const executor::KernelCall& call) {
  const ir::Shape& shape = *call.call.operands[0].shape;
  const std::vector<int64_t> starts = known(call, 1);
  const std::vector<int64_t> axes = axes_or_all(call, 3, starts.size());
  const std::vector<int64_t> steps =
      call.call.node.input(4) ? known(call, 4) : std::vector<int64_t>(starts.size(), 1);
  Strides from = row_major_strides(shape);
  int64_t offset = 0;
  for (size_t k = 0; k < starts.size(); ++k) {
    const size_t axis = ir::normalize_axis(axes[k], shape.size());
    const int64_t extent = shape[axis];
    const int64_t last = steps[k] > 0 ? extent : std::max<int64_t>(extent - 1, 0);
    const int64_t start = starts[k] < 0 ? starts[k] + extent : starts[k];
    offset += std::clamp<int64_t>(start, 0, last) * from[axis];
    from[axis] *= steps[k];
  }
  gather_strided(call, from, offset);
}

template <typename T>
struct Fill {
  T* y;
  const T* value;  // null: zero
  AUTOSP_DEVICE void operator()(int64_t i) const { y[i] = value != nullptr ? *value : T{}; }
};

void fill(const executor::KernelCall& call, const void* value) {
  const auto& y = call.call.results[0];
  visit_bits(y.dtype, [&]<typename T>(std::type_identity<T>) {
    launch(Queue(call), ir::num_elements(*y.shape),
           Fill<T>{data<T>(y), static_cast<const T*>(value)});
  });
}

bool pads_with_a_constant(const ir::Graph& graph, const ir::Node& node) {
  return node.attributes.get_string("mode", "constant") == "constant" && is_known(graph, node, 1) &&
         is_known(graph, node, 3);
}

// Operands: data, pads, value?, axes?. A negative pad removes elements.
void pad(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const auto& y = call.call.results[0];
  const size_t rank = x.shape->size();
  const std::vector<int64_t> pads = known(call, 1);
  const std::vector<int64_t> axes = axes_or_all(call, 3, rank);
  fill(call, operand(call, 2).data);
  StridedCopy kept{.shape = *x.shape,
                   .element_size = ir::element_size(y.dtype),
                   .to = y.data,
                   .to_strides = row_major_strides(*y.shape),
                   .from = x.data,
                   .from_strides = row_major_strides(*x.shape)};
  for (size_t k = 0; k < axes.size(); ++k) {
    const size_t axis = ir::normalize_axis(axes[k], rank);
    const int64_t before = pads[k];
    const int64_t after = pads[k + axes.size()];
    const int64_t extent =
        kept.shape[axis] + std::min<int64_t>(before, 0) + std::min<int64_t>(after, 0);
    kept.shape[axis] = std::max<int64_t>(extent, 0);
    kept.from_offset += std::max<int64_t>(-before, 0) * kept.from_strides[axis];
    kept.to_offset += std::max<int64_t>(before, 0) * kept.to_strides[axis];
  }
  copy(Queue(call), kept);
}

// Each axis is a repeat, which goes nowhere, and the operand's own.
void tile(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const auto& y = call.call.results[0];
  const std::vector<int64_t> repeats = known(call, 1);
  const Strides own = row_major_strides(*x.shape);
  ir::Shape shape;
  Strides from;
  for (size_t k = 0; k < repeats.size(); ++k) {
    shape.insert(shape.end(), {repeats[k], (*x.shape)[k]});
    from.insert(from.end(), {0, own[k]});
  }
  copy(Queue(call), {.shape = shape,
                     .element_size = ir::element_size(y.dtype),
                     .to = y.data,
                     .to_strides = row_major_strides(shape),
                     .from = x.data,
                     .from_strides = from});
}

template <typename T>
struct Trilu {
  T* y;
  const T* x;
  int64_t rows;
  int64_t columns;
  int64_t diagonal;
  bool upper;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    const int64_t above = i % columns - i / columns % rows;
    y[i] = (upper ? above >= diagonal : above <= diagonal) ? x[i] : T{};
  }
};

void trilu(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const auto& y = call.call.results[0];
  const ir::Shape& shape = *x.shape;
  const int64_t diagonal = call.call.node.input(1) ? known(call, 1)[0] : 0;
  const bool upper = call.call.node.attributes.get_int("upper", 1) != 0;
  visit_bits(y.dtype, [&]<typename T>(std::type_identity<T>) {
    launch(
        Queue(call), ir::num_elements(shape),
        Trilu<T>{data<T>(y), data<T>(x), shape[shape.size() - 2], shape.back(), diagonal, upper});
  });
}

constexpr KernelRow kRows[] = {
    {"", "Reshape", nullptr, same_order},   {"", "Squeeze", nullptr, same_order},
    {"", "Unsqueeze", nullptr, same_order}, {"", "Flatten", nullptr, same_order},
    {"", "Identity", nullptr, same_order},  {"", "Transpose", nullptr, transpose},
    {"", "Expand", nullptr, expand},        {"", "Concat", nullptr, concat},
    {"", "Split", nullptr, split},          {"", "Slice", bounds_are_known, slice},
    {"", "Pad", pads_with_a_constant, pad}, {"", "Tile", bounds_are_known, tile},
    {"", "Trilu", bounds_are_known, trilu},
};

}  // namespace

std::span<const KernelRow> movement_rows() { return kRows; }

}  // namespace autosp::kernels

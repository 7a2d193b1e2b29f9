// Gather and scatter in all their forms, and OneHot. Indices outside an axis are errors.
#include <algorithm>
#include <cstring>

#include "reference/call.h"

namespace autosp::reference {

namespace {

int64_t bytes_of(const Operand& operand) {
  return size_of(operand) * static_cast<int64_t>(ir::element_size(operand.dtype));
}

void gather(const Call& call) {
  const Operand& x = call.operands[0];
  const Result& y = call.results[0];
  const size_t axis = axis_attribute(call, "axis", 0, x.shape->size());
  const auto [outer, inner] = around(*x.shape, axis);
  const int64_t extent = (*x.shape)[axis];
  std::vector<int64_t> indices = integers(call.operands[1]);
  for (int64_t& index : indices) index = checked_index(index, extent);

  const auto row = static_cast<size_t>(inner) * ir::element_size(x.dtype);
  const auto* from = data<std::byte>(x);
  auto* to = data<std::byte>(y);
  if (row == 0) return;
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t index : indices) {
      std::memcpy(to, from + static_cast<size_t>(o * extent + index) * row, row);
      to += row;
    }
  }
}

// Calls f(position in indices, position in data) for every element of `indices`, which has the rank
// of `data` and replaces the coordinate along `axis`.
template <typename F>
void for_each_indexed(const Operand& indices, const ir::Shape& data_shape, size_t axis, F&& f) {
  const std::vector<int64_t> values = integers(indices);
  Strides strides = row_major_strides(data_shape);
  const int64_t axis_stride = strides[axis];
  strides[axis] = 0;
  const StridedLoop<2> loop(*indices.shape, {row_major_strides(*indices.shape), strides});
  loop.for_each([&](const auto& at) {
    const int64_t index = checked_index(values[static_cast<size_t>(at[0])], data_shape[axis]);
    f(at[0], at[1] + index * axis_stride);
  });
}

void gather_elements(const Call& call) {
  const Operand& x = call.operands[0];
  const Result& y = call.results[0];
  const size_t axis = axis_attribute(call, "axis", 0, x.shape->size());
  visit_bits(y.dtype, [&]<typename T>(std::type_identity<T>) {
    for_each_indexed(call.operands[1], *x.shape, axis,
                     [&](int64_t at, int64_t from) { data<T>(y)[at] = data<T>(x)[from]; });
  });
}

// Where the slices that index tuples name begin in data: the last axis of `indices` holds tuples
// for the axes of data after the first `batch_dims`, which both share.
struct Tuples {
  std::vector<int64_t> offsets;  // in elements of data
  int64_t slice = 1;             // elements per slice

  Tuples(const Operand& indices, const ir::Shape& shape, size_t batch_dims) {
    const std::vector<int64_t> values = integers(indices);
    const auto length = static_cast<size_t>(indices.shape->back());
    const Strides strides = row_major_strides(shape);
    int64_t batches = 1;
    for (size_t k = 0; k < batch_dims; ++k) batches *= shape[k];
    int64_t batch_size = 1;
    for (size_t k = batch_dims; k < shape.size(); ++k) batch_size *= shape[k];
    for (size_t k = batch_dims + length; k < shape.size(); ++k) slice *= shape[k];

    const int64_t count = size_of(indices) / std::max<int64_t>(1, static_cast<int64_t>(length));
    const int64_t per_batch = batches == 0 ? 0 : count / batches;
    offsets.reserve(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      int64_t offset = per_batch == 0 ? 0 : i / per_batch * batch_size;
      for (size_t k = 0; k < length; ++k) {
        const size_t axis = batch_dims + k;
        offset +=
            strides[axis] * checked_index(values[static_cast<size_t>(i) * length + k], shape[axis]);
      }
      offsets.push_back(offset);
    }
  }
};

void gather_nd(const Call& call) {
  const Operand& x = call.operands[0];
  const auto batch_dims = static_cast<size_t>(call.node.attributes.get_int("batch_dims", 0));
  const Tuples tuples(call.operands[1], *x.shape, batch_dims);
  const size_t size = ir::element_size(x.dtype);
  const size_t slice = static_cast<size_t>(tuples.slice) * size;
  auto* to = data<std::byte>(call.results[0]);
  if (slice == 0) return;
  for (int64_t offset : tuples.offsets) {
    std::memcpy(to, data<std::byte>(x) + static_cast<size_t>(offset) * size, slice);
    to += slice;
  }
}

// Calls f.operator()<T>(combine) with the element type and the function that puts an update into an
// element. Without a reduction elements are moved as they are.
template <typename F>
void with_reduction(const Call& call, F&& f) {
  const std::string reduction = call.node.attributes.get_string("reduction", "none");
  const ir::DataType dtype = call.results[0].dtype;
  if (reduction == "none") {
    return visit_bits(dtype, [&]<typename T>(std::type_identity<T>) {
      f(std::type_identity<T>{}, [](T& to, T update) { to = update; });
    });
  }
  visit(NumericTypes{}, dtype, [&]<typename T>(std::type_identity<T> type) {
    using C = Compute<T>;
    if (reduction == "add") {
      f(type,
        [](T& to, T update) { to = static_cast<T>(static_cast<C>(to) + static_cast<C>(update)); });
    } else if (reduction == "mul") {
      f(type,
        [](T& to, T update) { to = static_cast<T>(static_cast<C>(to) * static_cast<C>(update)); });
    } else if (reduction == "max") {
      f(type,
        [](T& to, T update) { to = static_cast<C>(update) > static_cast<C>(to) ? update : to; });
    } else if (reduction == "min") {
      f(type,
        [](T& to, T update) { to = static_cast<C>(update) < static_cast<C>(to) ? update : to; });
    } else {
      throw Error("{} has no reduction \"{}\"", call.node.op, reduction);
    }
  });
}

// The result starts as the data; it may share the data's memory.
void copy_data(const Call& call) {
  if (call.results[0].data == call.operands[0].data) return;
  std::memcpy(call.results[0].data, call.operands[0].data,
              static_cast<size_t>(bytes_of(call.operands[0])));
}

void scatter_elements(const Call& call) {
  const Operand& x = call.operands[0];
  const size_t axis = axis_attribute(call, "axis", 0, x.shape->size());
  copy_data(call);
  with_reduction(call, [&]<typename T>(std::type_identity<T>, auto combine) {
    for_each_indexed(call.operands[1], *x.shape, axis, [&](int64_t at, int64_t to) {
      combine(data<T>(call.results[0])[to], data<T>(call.operands[2])[at]);
    });
  });
}

void scatter_nd(const Call& call) {
  const Tuples tuples(call.operands[1], *call.operands[0].shape, 0);
  copy_data(call);
  with_reduction(call, [&]<typename T>(std::type_identity<T>, auto combine) {
    const T* update = data<T>(call.operands[2]);
    for (int64_t offset : tuples.offsets) {
      T* to = data<T>(call.results[0]) + offset;
      for (int64_t i = 0; i < tuples.slice; ++i) combine(to[i], update[i]);
      update += tuples.slice;
    }
  });
}

// Operands: indices (any numeric type), depth, values = (off, on).
void one_hot(const Call& call) {
  const Operand& indices = call.operands[0];
  const Result& y = call.results[0];
  const size_t axis = axis_attribute(call, "axis", -1, y.shape->size());
  const auto [outer, inner] = around(*y.shape, axis);
  const int64_t depth = (*y.shape)[axis];
  std::vector<int64_t> hot(static_cast<size_t>(size_of(indices)));
  visit(NumericTypes{}, indices.dtype, [&]<typename T>(std::type_identity<T>) {
    for (size_t i = 0; i < hot.size(); ++i) hot[i] = convert<int64_t>(data<T>(indices)[i]);
  });
  visit_bits(y.dtype, [&]<typename T>(std::type_identity<T>) {
    const T* values = data<T>(call.operands[2]);
    std::fill_n(data<T>(y), size_of(y), values[0]);
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t i = 0; i < inner; ++i) {
        int64_t index = hot[static_cast<size_t>(o * inner + i)];
        if (index < 0) index += depth;
        // An index outside [-depth, depth) gives a row of `off`.
        if (index >= 0 && index < depth) data<T>(y)[(o * depth + index) * inner + i] = values[1];
      }
    }
  });
}

constexpr KernelRow kRows[] = {
    {"Gather", gather},
    {"GatherElements", gather_elements},
    {"GatherND", gather_nd},
    {"ScatterElements", scatter_elements, Aliasing::kOperandZero},
    {"ScatterND", scatter_nd, Aliasing::kOperandZero},
    {"OneHot", one_hot},
};

}  // namespace

std::span<const KernelRow> indexing_kernels() { return kRows; }

}  // namespace autosp::reference

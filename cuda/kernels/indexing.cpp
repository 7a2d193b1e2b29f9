// Gather and scatter in all their forms. An index outside its axis is reported to the run
// (executor/device.h, faults), and nothing is read or written for it.
#include <algorithm>

#include "cuda/kernels/copy.h"
#include "cuda/kernels/faults.h"
#include "cuda/kernels/map.h"
#include "cuda/kernels/rows.h"

namespace autosp::kernels {

namespace {

using IndexTypes = TypeList<int64_t, int32_t>;

// Position along an axis of `extent`; -1 where it is outside, which is reported.
template <typename I>
AUTOSP_DEVICE int64_t resolve(I index, int64_t extent, const Fault& fault) {
  const int64_t position = index < 0 ? index + extent : index;
  if (position >= 0 && position < extent) return position;
  fault.report();
  return -1;
}

bool indexed_by_integers(const ir::Graph& graph, const ir::Node& node) {
  return contains(IndexTypes{}, graph.type(node.inputs[1]).dtype);
}

struct Around {
  int64_t outer = 1;
  int64_t inner = 1;
};
Around around(const ir::Shape& shape, size_t axis) {
  Around result;
  for (size_t k = 0; k < axis; ++k) result.outer *= shape[k];
  for (size_t k = axis + 1; k < shape.size(); ++k) result.inner *= shape[k];
  return result;
}

size_t axis_of(const executor::KernelCall& call, const ir::Shape& shape) {
  return ir::normalize_axis(call.call.node.attributes.get_int("axis", 0), shape.size());
}

// y[outer][count][inner] = x[outer][indices[count]][inner], in elements of T.
template <typename T, typename I>
struct Gather {
  T* y;
  const T* x;
  const I* indices;
  int64_t count;
  int64_t inner;
  int64_t extent;
  Fault fault;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    const int64_t row = i / inner;
    const int64_t at = resolve(indices[row % count], extent, fault);
    if (at >= 0) y[i] = x[(row / count * extent + at) * inner + i % inner];
  }
};

// The widest elements that rows of `bytes` bytes at these places are made of.
size_t widest(int64_t bytes, const void* a, const void* b) {
  size_t width = 16;
  const auto fits = [&] {
    return bytes % static_cast<int64_t>(width) == 0 &&
           reinterpret_cast<uintptr_t>(a) % width == 0 &&
           reinterpret_cast<uintptr_t>(b) % width == 0;
  };
  while (!fits()) width /= 2;
  return width;
}

void gather(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const auto& indices = call.call.operands[1];
  const auto& y = call.call.results[0];
  if (ir::num_elements(*y.shape) == 0) return;
  const size_t axis = axis_of(call, *x.shape);
  const auto [outer, inner] = around(*x.shape, axis);
  const int64_t row = inner * static_cast<int64_t>(ir::element_size(x.dtype));
  const size_t width = widest(row, x.data, y.data);
  const int64_t elements = row / static_cast<int64_t>(width);
  const int64_t count = ir::num_elements(*indices.shape);
  visit_width(width, [&]<typename T>(std::type_identity<T>) {
    visit(IndexTypes{}, indices.dtype, [&]<typename I>(std::type_identity<I>) {
      launch(Queue(call), outer * count * elements,
             Gather<T, I>{data<T>(y), data<T>(x), data<I>(indices), count, elements,
                          (*x.shape)[axis], Fault(call)});
    });
  });
}

// The grid walks the indices; the data's stride along the axis is left out of it.
template <typename T, typename I>
struct GatherElements {
  T* y;
  const T* x;
  const I* indices;
  Grid<1> grid;
  int64_t axis_stride;
  int64_t extent;
  Fault fault;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    const int64_t at = resolve(indices[i], extent, fault);
    if (at >= 0) y[i] = x[grid.offsets(i).at[0] + at * axis_stride];
  }
};

struct Indexed {
  Grid<1> grid;
  int64_t axis_stride;
  int64_t extent;

  Indexed(const ir::Shape& indices, const ir::Shape& data, size_t axis) : extent(data[axis]) {
    Strides strides = row_major_strides(data);
    axis_stride = strides[axis];
    strides[axis] = 0;
    grid = Grid<1>(indices, {strides});
  }
};

void gather_elements(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const auto& indices = call.call.operands[1];
  const auto& y = call.call.results[0];
  const Indexed at(*indices.shape, *x.shape, axis_of(call, *x.shape));
  visit_bits(y.dtype, [&]<typename T>(std::type_identity<T>) {
    visit(IndexTypes{}, indices.dtype, [&]<typename I>(std::type_identity<I>) {
      launch(Queue(call), at.grid.count,
             GatherElements<T, I>{data<T>(y), data<T>(x), data<I>(indices), at.grid, at.axis_stride,
                                  at.extent, Fault(call)});
    });
  });
}

// Tuples of indices, the last axis of an operand, and the slices of data that they name.
constexpr int kLongestTuple = 8;
struct Tuples {
  int length = 0;
  int64_t slice = 1;       // elements of data
  int64_t count = 0;       // tuples
  int64_t per_batch = 1;   // tuples
  int64_t batch_size = 0;  // elements of data
  int64_t extent[kLongestTuple] = {};
  int64_t stride[kLongestTuple] = {};

  Tuples(const ir::Shape& indices, const ir::Shape& data, size_t batch_dims)
      : length(static_cast<int>(indices.back())) {
    const Strides strides = row_major_strides(data);
    int64_t batches = 1;
    batch_size = 1;
    for (size_t k = 0; k < batch_dims; ++k) batches *= data[k];
    for (size_t k = batch_dims; k < data.size(); ++k) batch_size *= data[k];
    for (int k = 0; k < length; ++k) {
      extent[k] = data[batch_dims + static_cast<size_t>(k)];
      stride[k] = strides[batch_dims + static_cast<size_t>(k)];
    }
    for (size_t k = batch_dims + static_cast<size_t>(length); k < data.size(); ++k) {
      slice *= data[k];
    }
    count = 1;
    for (size_t k = 0; k + 1 < indices.size(); ++k) count *= indices[k];
    per_batch = batches > 0 && count > 0 ? count / batches : 1;
  }

  // Where the slice of tuple `t` begins; -1 where an index is outside.
  template <typename I>
  AUTOSP_DEVICE int64_t offset(const I* indices, int64_t t, const Fault& fault) const {
    int64_t at = t / per_batch * batch_size;
    for (int k = 0; k < length; ++k) {
      const int64_t index = resolve(indices[t * length + k], extent[k], fault);
      if (index < 0) return -1;
      at += index * stride[k];
    }
    return at;
  }
};

bool tuples_are_short(const ir::Graph& graph, const ir::Node& node) {
  return indexed_by_integers(graph, node) && graph.shape(node.inputs[1]).back() <= kLongestTuple;
}

template <typename T, typename I>
struct GatherNd {
  T* y;
  const T* x;
  const I* indices;
  Tuples tuples;
  Fault fault;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    const int64_t at = tuples.offset(indices, i / tuples.slice, fault);
    if (at >= 0) y[i] = x[at + i % tuples.slice];
  }
};

void gather_nd(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const auto& indices = call.call.operands[1];
  const auto& y = call.call.results[0];
  const Tuples tuples(*indices.shape, *x.shape,
                      static_cast<size_t>(call.call.node.attributes.get_int("batch_dims", 0)));
  visit_bits(y.dtype, [&]<typename T>(std::type_identity<T>) {
    visit(IndexTypes{}, indices.dtype, [&]<typename I>(std::type_identity<I>) {
      launch(Queue(call), ir::num_elements(*y.shape),
             GatherNd<T, I>{data<T>(y), data<T>(x), data<I>(indices), tuples, Fault(call)});
    });
  });
}

// --- Scatter. Several updates of one element are added in no particular order.

template <typename T>
AUTOSP_DEVICE void add_at(T* to, T update) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, int64_t>) {
    atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(update));
  } else if constexpr (kIsHalf<T>) {
    // The word that holds it is exchanged until nobody else has changed it meanwhile.
    const auto address = reinterpret_cast<uintptr_t>(to);
    auto* word = reinterpret_cast<unsigned*>(address & ~uintptr_t{3});
    const unsigned shift = (address & 2U) != 0 ? 16U : 0U;
    unsigned seen = *word;
    unsigned expected;
    do {
      expected = seen;
      T now;
      now.bits = static_cast<uint16_t>(expected >> shift);
      const T sum(static_cast<float>(now) + static_cast<float>(update));
      const unsigned changed =
          (expected & ~(0xFFFFU << shift)) | (static_cast<unsigned>(sum.bits) << shift);
      seen = atomicCAS(word, expected, changed);
    } while (seen != expected);
  } else {
    atomicAdd(to, update);
  }
#else
  *to = T(static_cast<Compute<T>>(*to) + static_cast<Compute<T>>(update));
#endif
}

template <typename T, bool kAdds>
AUTOSP_DEVICE void put(T* to, T update) {
  if constexpr (kAdds) {
    add_at(to, update);
  } else {
    *to = update;
  }
}

template <typename T, typename I, bool kAdds>
struct ScatterElements {
  T* y;
  const T* updates;
  const I* indices;
  Grid<1> grid;
  int64_t axis_stride;
  int64_t extent;
  Fault fault;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    const int64_t at = resolve(indices[i], extent, fault);
    if (at >= 0) put<T, kAdds>(y + grid.offsets(i).at[0] + at * axis_stride, updates[i]);
  }
};

template <typename T, typename I, bool kAdds>
struct ScatterNd {
  T* y;
  const T* updates;
  const I* indices;
  Tuples tuples;
  Fault fault;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    const int64_t at = tuples.offset(indices, i / tuples.slice, fault);
    if (at >= 0) put<T, kAdds>(y + at + i % tuples.slice, updates[i]);
  }
};

bool sets_or_adds(const ir::Graph& graph, const ir::Node& node) {
  const std::string reduction = node.attributes.get_string("reduction", "none");
  const bool adds = reduction == "add" && takes<NumberTypes>(graph, node);
  return (reduction == "none" || adds) && indexed_by_integers(graph, node);
}

bool sets_or_adds_slices(const ir::Graph& graph, const ir::Node& node) {
  return sets_or_adds(graph, node) && tuples_are_short(graph, node);
}

// Calls f(types of the element and the index, whether updates are added).
template <typename F>
void with_reduction(const executor::KernelCall& call, F&& f) {
  const ir::DataType type = call.call.results[0].dtype;
  const ir::DataType index = call.call.operands[1].dtype;
  if (call.call.node.attributes.get_string("reduction", "none") == "add") {
    visit(NumberTypes{}, type, [&]<typename T>(std::type_identity<T> t) {
      visit(IndexTypes{}, index, [&](auto i) { f(t, i, std::true_type{}); });
    });
  } else {
    visit_bits(type, [&]<typename T>(std::type_identity<T> t) {
      visit(IndexTypes{}, index, [&](auto i) { f(t, i, std::false_type{}); });
    });
  }
}

// The result begins as the data, whose memory it may share.
void copy_data(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  copy_bytes(Queue(call), call.call.results[0].data, x.data,
             ir::num_elements(*x.shape) * static_cast<int64_t>(ir::element_size(x.dtype)));
}

void scatter_elements(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const auto& indices = call.call.operands[1];
  const auto& y = call.call.results[0];
  copy_data(call);
  const Indexed at(*indices.shape, *x.shape, axis_of(call, *x.shape));
  with_reduction(call, [&]<typename T, typename I, typename Adds>(std::type_identity<T>,
                                                                  std::type_identity<I>, Adds) {
    launch(Queue(call), at.grid.count,
           ScatterElements<T, I, Adds::value>{data<T>(y), data<T>(call.call.operands[2]),
                                              data<I>(indices), at.grid, at.axis_stride, at.extent,
                                              Fault(call)});
  });
}

void scatter_nd(const executor::KernelCall& call) {
  const auto& indices = call.call.operands[1];
  const auto& updates = call.call.operands[2];
  copy_data(call);
  const Tuples tuples(*indices.shape, *call.call.operands[0].shape, 0);
  with_reduction(call, [&]<typename T, typename I, typename Adds>(std::type_identity<T>,
                                                                  std::type_identity<I>, Adds) {
    launch(Queue(call), ir::num_elements(*updates.shape),
           ScatterNd<T, I, Adds::value>{data<T>(call.call.results[0]), data<T>(updates),
                                        data<I>(indices), tuples, Fault(call)});
  });
}

// y[outer][depth][inner]: `on` at the depth that is the index of [outer][inner], else `off`.
template <typename T, typename I>
struct OneHot {
  T* y;
  const I* indices;
  const T* values;  // off, on
  int64_t depth;
  int64_t inner;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    const int64_t row = i / inner;
    const auto given =
        static_cast<int64_t>(static_cast<Compute<I>>(indices[row / depth * inner + i % inner]));
    const int64_t index = given < 0 ? given + depth : given;
    y[i] = values[index == row % depth ? 1 : 0];
  }
};

void one_hot(const executor::KernelCall& call) {
  const auto& indices = call.call.operands[0];
  const auto& y = call.call.results[0];
  const size_t axis =
      ir::normalize_axis(call.call.node.attributes.get_int("axis", -1), y.shape->size());
  const int64_t inner = around(*y.shape, axis).inner;
  visit_bits(y.dtype, [&]<typename T>(std::type_identity<T>) {
    visit(NumberTypes{}, indices.dtype, [&]<typename I>(std::type_identity<I>) {
      launch(Queue(call), ir::num_elements(*y.shape),
             OneHot<T, I>{data<T>(y), data<I>(indices), data<T>(call.call.operands[2]),
                          (*y.shape)[axis], inner});
    });
  });
}

constexpr auto kOperandZero = reference::Aliasing::kOperandZero;

constexpr KernelRow kRows[] = {
    {"", "Gather", indexed_by_integers, gather},
    {"", "GatherElements", indexed_by_integers, gather_elements},
    {"", "GatherND", tuples_are_short, gather_nd},
    {"", "ScatterElements", sets_or_adds, scatter_elements, nullptr, kOperandZero},
    {"", "ScatterND", sets_or_adds_slices, scatter_nd, nullptr, kOperandZero},
    {"", "OneHot", takes<NumberTypes>, one_hot},
};

}  // namespace

std::span<const KernelRow> indexing_rows() { return kRows; }

}  // namespace autosp::kernels

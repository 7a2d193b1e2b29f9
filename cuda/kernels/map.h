// Elementwise kernels: y[i] = f(operands at i), in vectors of 16 bytes where all lie alike.
#pragma once

#include "cuda/kernels/grid.h"
#include "cuda/kernels/launch.h"

namespace autosp::kernels {

// So many elements are read and written at once: 16 bytes of the widest.
template <typename... Ts>
inline constexpr int kPack = [] {
  size_t widest = 1;
  ((widest = sizeof(Ts) > widest ? sizeof(Ts) : widest), ...);
  return static_cast<int>(16 / widest);
}();

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T element[kCount];
};

template <typename T>
bool aligned_for(const void* data, int pack) {
  return reinterpret_cast<uintptr_t>(data) % (sizeof(T) * static_cast<size_t>(pack)) == 0;
}

// --- One operand.

template <typename F, typename Y, typename X>
struct MapPacked {
  static constexpr int kCount = kPack<X, Y>;
  F f;
  Y* y;
  const X* x;
  int64_t count;
  AUTOSP_DEVICE void operator()(int64_t pack) const {
    const int64_t begin = pack * kCount;
    if (begin + kCount > count) {
      for (int64_t i = begin; i < count; ++i) y[i] = f(x[i]);
      return;
    }
    const auto in = reinterpret_cast<const Pack<X, kCount>*>(x)[pack];
    Pack<Y, kCount> out;
    for (int k = 0; k < kCount; ++k) out.element[k] = f(in.element[k]);
    reinterpret_cast<Pack<Y, kCount>*>(y)[pack] = out;
  }
};

// y and x of equal element counts.
template <typename Y, typename X, typename F>
void map(const Queue& queue, int64_t count, Y* y, const X* x, F f) {
  constexpr int kCount = MapPacked<F, Y, X>::kCount;
  AUTOSP_CHECK(aligned_for<Y>(y, kCount) && aligned_for<X>(x, kCount), "data are not aligned");
  launch(queue, (count + kCount - 1) / kCount, MapPacked<F, Y, X>{f, y, x, count});
}

// --- Two operands of one type, broadcast.

template <typename F, typename Y, typename X>
struct ZipPacked {
  static constexpr int kCount = kPack<X, Y>;
  F f;
  Y* y;
  const X* a;
  const X* b;
  int64_t count;
  bool a_is_scalar;
  bool b_is_scalar;
  AUTOSP_DEVICE void operator()(int64_t pack) const {
    const int64_t begin = pack * kCount;
    if (begin + kCount > count) {
      for (int64_t i = begin; i < count; ++i) {
        y[i] = f(a[a_is_scalar ? 0 : i], b[b_is_scalar ? 0 : i]);
      }
      return;
    }
    const auto left = read(a, a_is_scalar, pack);
    const auto right = read(b, b_is_scalar, pack);
    Pack<Y, kCount> out;
    for (int k = 0; k < kCount; ++k) out.element[k] = f(left.element[k], right.element[k]);
    reinterpret_cast<Pack<Y, kCount>*>(y)[pack] = out;
  }

 private:
  AUTOSP_DEVICE static Pack<X, kCount> read(const X* from, bool is_scalar, int64_t pack) {
    if (!is_scalar) return reinterpret_cast<const Pack<X, kCount>*>(from)[pack];
    Pack<X, kCount> all;
    for (int k = 0; k < kCount; ++k) all.element[k] = *from;
    return all;
  }
};

template <typename F, typename Y, typename X>
struct ZipBroadcast {
  F f;
  Y* y;
  const X* a;
  const X* b;
  Grid<2> grid;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    const auto at = grid.offsets(i);
    y[i] = f(a[at.at[0]], b[at.at[1]]);
  }
};

template <typename Y, typename X, typename F>
void zip(const Queue& queue, const ir::Shape& shape, Y* y, const ir::Shape& a_shape, const X* a,
         const ir::Shape& b_shape, const X* b, F f) {
  const int64_t count = ir::num_elements(shape);
  const int64_t a_count = ir::num_elements(a_shape);
  const int64_t b_count = ir::num_elements(b_shape);
  if ((a_count == count || a_count == 1) && (b_count == count || b_count == 1)) {
    constexpr int kCount = ZipPacked<F, Y, X>::kCount;
    launch(queue, (count + kCount - 1) / kCount,
           ZipPacked<F, Y, X>{f, y, a, b, count, a_count != count, b_count != count});
  } else {
    launch(queue, count,
           ZipBroadcast<F, Y, X>{f, y, a, b,
                                 Grid<2>(shape, {broadcast_strides(a_shape, shape),
                                                 broadcast_strides(b_shape, shape)})});
  }
}

template <typename T>
const T* data(const reference::Operand& operand) {
  return static_cast<const T*>(operand.data);
}
template <typename T>
T* data(const reference::Result& result) {
  return static_cast<T*>(result.data);
}
inline const reference::Operand& operand(const executor::KernelCall& call, size_t k) {
  static const reference::Operand kAbsent;
  return k < call.call.operands.size() ? call.call.operands[k] : kAbsent;
}
inline const reference::Result& result(const executor::KernelCall& call, size_t k) {
  static const reference::Result kAbsent;
  return k < call.call.results.size() ? call.call.results[k] : kAbsent;
}

// Row conditions: the element type of operand or result 0.
template <typename Types>
bool takes(const ir::Graph& graph, const ir::Node& node) {
  return !node.inputs.empty() && node.inputs[0] &&
         contains(Types{}, graph.type(node.inputs[0]).dtype);
}
template <typename Types>
bool gives(const ir::Graph& graph, const ir::Node& node) {
  return contains(Types{}, graph.type(node.outputs[0]).dtype);
}

// An integer operand that the model holds.
inline bool is_known(const ir::Graph& graph, const ir::Node& node, size_t k) {
  return !node.input(k) || graph.constant_ints(node.input(k)).has_value();
}
inline std::vector<int64_t> known(const executor::KernelCall& call, size_t k) {
  return *call.graph->constant_ints(call.call.node.input(k));
}

}  // namespace autosp::kernels

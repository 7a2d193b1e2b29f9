// What every kernel file shares: typed access to operands and results, and the tables' row type.
#pragma once

#include "reference/element_types.h"
#include "reference/kernels.h"
#include "reference/strided_loop.h"

namespace autosp::reference {

template <typename T>
const T* data(const Operand& operand) {
  return static_cast<const T*>(operand.data);
}
template <typename T>
T* data(const Result& result) {
  return static_cast<T*>(result.data);
}

inline const Operand& operand(const Call& call, size_t k) {
  static const Operand kAbsent;
  return k < call.operands.size() ? call.operands[k] : kAbsent;
}
inline bool has_operand(const Call& call, size_t k) { return static_cast<bool>(operand(call, k)); }
inline bool has_result(const Call& call, size_t k) {
  return k < call.results.size() && call.results[k];
}

inline int64_t size_of(const Operand& operand) { return ir::num_elements(*operand.shape); }
inline int64_t size_of(const Result& result) { return ir::num_elements(*result.shape); }

inline size_t axis_attribute(const Call& call, const char* name, int64_t otherwise, size_t rank) {
  return ir::normalize_axis(call.node.attributes.get_int(name, otherwise), rank);
}

// Products of the extents before and after `axis`.
struct Around {
  int64_t outer = 1;
  int64_t inner = 1;
};
inline Around around(const ir::Shape& shape, size_t axis) {
  Around result;
  for (size_t k = 0; k < axis; ++k) result.outer *= shape[k];
  for (size_t k = axis + 1; k < shape.size(); ++k) result.inner *= shape[k];
  return result;
}

// The elements of an integer operand (axes, bounds, repeats).
std::vector<int64_t> integers(const Operand& operand);

// Index `index` into an extent, negative ones counted from the end; Error when outside.
inline int64_t checked_index(int64_t index, int64_t extent) {
  const int64_t resolved = index < 0 ? index + extent : index;
  if (resolved < 0 || resolved >= extent) {
    throw Error("index {} is outside [{}, {})", index, -extent, extent);
  }
  return resolved;
}

struct KernelRow {
  std::string_view op;
  Kernel kernel;
  Aliasing aliasing = Aliasing::kNone;
};

// One table per file.
std::span<const KernelRow> unary_kernels();
std::span<const KernelRow> binary_kernels();
std::span<const KernelRow> select_kernels();
std::span<const KernelRow> reduce_kernels();
std::span<const KernelRow> ordering_kernels();
std::span<const KernelRow> matmul_kernels();
std::span<const KernelRow> convolution_kernels();
std::span<const KernelRow> transposed_convolution_kernels();
std::span<const KernelRow> pooling_kernels();
std::span<const KernelRow> movement_kernels();
std::span<const KernelRow> indexing_kernels();
std::span<const KernelRow> normalization_kernels();
std::span<const KernelRow> generator_kernels();
std::span<const KernelRow> loss_kernels();
std::span<const KernelRow> attention_kernels();  // of this project's domain
std::span<const KernelRow> draw_kernels();       // likewise
std::span<const KernelRow> training_kernels();   // of ai.onnx.preview.training

}  // namespace autosp::reference

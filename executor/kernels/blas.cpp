// MatMul and Gemm through CBLAS. 16-bit floats are widened to float in scratch memory.
#include <algorithm>
#include <cstring>

#include "executor/kernels/product.h"
#include "executor/kernels/rows.h"
#include "reference/element_types.h"
#include "reference/strided_loop.h"

namespace autosp::executor {

namespace {

using reference::BFloat16;
using reference::Float16;
using reference::StridedLoop;
using reference::Strides;

// A MatMul as products of matrices that lie `strides` apart. A transposed operand is stored with
// its last two axes exchanged.
struct BatchedProduct {
  ir::Shape batch;
  Strides a_strides;
  Strides b_strides;
  Strides c_strides;
  Product product{};

  BatchedProduct(ir::Shape a, ir::Shape b, ir::Shape c, bool transpose_a = false,
                 bool transpose_b = false) {
    const bool vector_a = a.size() == 1;
    const bool vector_b = b.size() == 1;
    if (vector_a) a.insert(a.begin(), 1);
    if (vector_b) b.push_back(1);
    product = {transpose_a ? a.back() : a[a.size() - 2], transpose_b ? b[b.size() - 2] : b.back(),
               transpose_a ? a[a.size() - 2] : a.back(), transpose_a, transpose_b};
    c.resize(c.size() - (vector_a ? 0 : 1) - (vector_b ? 0 : 1));
    batch = std::move(c);
    a.resize(a.size() - 2);
    b.resize(b.size() - 2);
    // One matrix on the right: the rows of all batches are one tall matrix.
    if (ir::num_elements(b) == 1 && a == batch && !transpose_a) {
      product.m *= ir::num_elements(a);
      batch.clear();
      a.clear();
      b.clear();
    }
    a_strides = scaled(reference::broadcast_strides(a, batch), product.m * product.k);
    b_strides = scaled(reference::broadcast_strides(b, batch), product.k * product.n);
    c_strides = scaled(reference::row_major_strides(batch), product.m * product.n);
  }

  template <typename T>
  void run(const T* a, const T* b, T* c) const {
    const StridedLoop<3> loop(batch, {a_strides, b_strides, c_strides});
    loop.for_each([&](const auto& at) { product(a + at[0], b + at[1], c + at[2]); });
  }

 private:
  static Strides scaled(Strides strides, int64_t by) {
    for (int64_t& stride : strides) stride *= by;
    return strides;
  }
};

template <typename T>
void matmul(const KernelCall& call) {
  const auto& [node, operands, results] = call.call;
  BatchedProduct(*operands[0].shape, *operands[1].shape, *results[0].shape)
      .run(static_cast<const T*>(operands[0].data), static_cast<const T*>(operands[1].data),
           static_cast<T*>(results[0].data));
}

// MatMul of stored transposes (absorb_transposes.h).
template <typename T>
void matmul_of_transposed(const KernelCall& call) {
  const auto& [node, operands, results] = call.call;
  BatchedProduct(*operands[0].shape, *operands[1].shape, *results[0].shape,
                 node.attributes.get_int("transA", 0) != 0,
                 node.attributes.get_int("transB", 0) != 0)
      .run(static_cast<const T*>(operands[0].data), static_cast<const T*>(operands[1].data),
           static_cast<T*>(results[0].data));
}

Product product_of(const reference::Call& call) {
  const ir::Attributes& attributes = call.node.attributes;
  const bool transpose_a = attributes.get_int("transA", 0) != 0;
  const ir::Shape& a = *call.operands[0].shape;
  const ir::Shape& c = *call.results[0].shape;
  const bool bias = call.operands.size() > 2 && call.operands[2];
  return {c[0],
          c[1],
          transpose_a ? a[0] : a[1],
          transpose_a,
          attributes.get_int("transB", 0) != 0,
          attributes.get_float("alpha", 1),
          bias ? attributes.get_float("beta", 1) : 0.0};
}

template <typename T>
void gemm(const KernelCall& call) {
  const auto& [node, operands, results] = call.call;
  const Product product = product_of(call.call);
  T* c = static_cast<T*>(results[0].data);
  if (operands.size() > 2 && operands[2]) {
    const T* bias = static_cast<const T*>(operands[2].data);
    const Strides strides = reference::broadcast_strides(*operands[2].shape, *results[0].shape);
    for (int64_t i = 0; i < product.m; ++i) {
      const T* from = bias + i * strides[0];
      T* to = c + i * product.n;
      if (strides[1] == 1) {
        std::copy_n(from, product.n, to);
      } else {
        std::fill_n(to, product.n, *from);
      }
    }
  }
  product(static_cast<const T*>(operands[0].data), static_cast<const T*>(operands[1].data), c);
}

// Scratch memory for float copies of two operands and the result.
int64_t widened_bytes(const ir::Graph& graph, const ir::Node& node, int /*workers*/) {
  const auto bytes = [&](ValueId id) {
    return (graph.type(id).num_elements() * static_cast<int64_t>(sizeof(float)) + 63) / 64 * 64;
  };
  return bytes(node.inputs[0]) + bytes(node.inputs[1]) + bytes(node.outputs[0]);
}

template <typename Half>
void widened_matmul(const KernelCall& call) {
  const auto& [node, operands, results] = call.call;
  const auto aligned = [](int64_t count) { return (count + 15) / 16 * 16; };
  const int64_t a_count = ir::num_elements(*operands[0].shape);
  const int64_t b_count = ir::num_elements(*operands[1].shape);
  const int64_t c_count = ir::num_elements(*results[0].shape);
  auto* a = reinterpret_cast<float*>(call.workspace);
  float* b = a + aligned(a_count);
  float* c = b + aligned(b_count);
  std::copy_n(static_cast<const Half*>(operands[0].data), a_count, a);
  std::copy_n(static_cast<const Half*>(operands[1].data), b_count, b);
  BatchedProduct(*operands[0].shape, *operands[1].shape, *results[0].shape).run(a, b, c);
  std::transform(c, c + c_count, static_cast<Half*>(results[0].data),
                 [](float value) { return Half(value); });
}

template <ir::DataType kType>
bool of_type(const ir::Graph& graph, const ir::Node& node) {
  return graph.type(node.outputs[0]).dtype == kType;
}

constexpr auto kFloat32 = ir::DataType::kFloat32;
constexpr auto kFloat64 = ir::DataType::kFloat64;
constexpr auto kFloat16 = ir::DataType::kFloat16;
constexpr auto kBFloat16 = ir::DataType::kBFloat16;

constexpr KernelRow kRows[] = {
    {"", "MatMul", of_type<kFloat32>, matmul<float>},
    {"", "MatMul", of_type<kFloat64>, matmul<double>},
    {"", "MatMul", of_type<kFloat16>, widened_matmul<Float16>, widened_bytes},
    {"", "MatMul", of_type<kBFloat16>, widened_matmul<BFloat16>, widened_bytes},
    {ir::kAutospDomain, "MatMul", of_type<kFloat32>, matmul_of_transposed<float>},
    {ir::kAutospDomain, "MatMul", of_type<kFloat64>, matmul_of_transposed<double>},
    {"", "Gemm", of_type<kFloat32>, gemm<float>},
    {"", "Gemm", of_type<kFloat64>, gemm<double>},
};

}  // namespace

std::span<const KernelRow> blas_rows() { return kRows; }

}  // namespace autosp::executor

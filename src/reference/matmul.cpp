// Matrix products, accumulated in double (integers in 64 bits) in order of the contracted index.
#include <algorithm>

#include "reference/call.h"

namespace autosp::reference {

namespace {

using MatrixTypes =
    TypeList<float, double, Float16, BFloat16, int64_t, int32_t, uint64_t, uint32_t>;

// A matrix inside a buffer: element (i, j) is at data[i * row + j * column].
template <typename T>
struct Matrix {
  const T* data;
  int64_t row;
  int64_t column;
};

// totals[0:n] = row i of A, times B.
template <typename T>
void multiply_row(const Matrix<T>& a, const Matrix<T>& b, int64_t i, int64_t k, int64_t n,
                  std::vector<Accumulator<T>>& totals) {
  std::fill(totals.begin(), totals.end(), Accumulator<T>{0});
  for (int64_t x = 0; x < k; ++x) {
    const auto left =
        static_cast<Accumulator<T>>(static_cast<Compute<T>>(a.data[i * a.row + x * a.column]));
    const T* right = b.data + x * b.row;
    for (int64_t j = 0; j < n; ++j) {
      totals[static_cast<size_t>(j)] +=
          left * static_cast<Accumulator<T>>(static_cast<Compute<T>>(right[j * b.column]));
    }
  }
}

// A one-dimensional operand is a row on the left and a column on the right.
void matmul(const Call& call) {
  ir::Shape a = *call.operands[0].shape;
  ir::Shape b = *call.operands[1].shape;
  ir::Shape c = *call.results[0].shape;
  const bool is_vector_a = a.size() == 1;
  const bool is_vector_b = b.size() == 1;
  if (is_vector_a) a.insert(a.begin(), 1);
  if (is_vector_b) b.push_back(1);
  const int64_t m = a[a.size() - 2];
  const int64_t k = a.back();
  const int64_t n = b.back();
  c.resize(c.size() - (is_vector_a ? 0 : 1) - (is_vector_b ? 0 : 1));  // the batch axes

  const auto batch_strides = [&c](ir::Shape shape, int64_t matrix_size) {
    shape.resize(shape.size() - 2);
    Strides strides = broadcast_strides(shape, c);
    for (int64_t& stride : strides) stride *= matrix_size;
    return strides;
  };
  Strides c_strides = row_major_strides(c);
  for (int64_t& stride : c_strides) stride *= m * n;
  const StridedLoop<3> batches(c, {c_strides, batch_strides(a, m * k), batch_strides(b, k * n)});

  visit(MatrixTypes{}, call.results[0].dtype, [&]<typename T>(std::type_identity<T>) {
    std::vector<Accumulator<T>> totals(static_cast<size_t>(n));
    batches.for_each([&](const auto& at) {
      const Matrix<T> left{data<T>(call.operands[0]) + at[1], k, 1};
      const Matrix<T> right{data<T>(call.operands[1]) + at[2], n, 1};
      T* out = data<T>(call.results[0]) + at[0];
      for (int64_t i = 0; i < m; ++i) {
        multiply_row(left, right, i, k, n, totals);
        for (int64_t j = 0; j < n; ++j) out[i * n + j] = convert<T>(totals[static_cast<size_t>(j)]);
      }
    });
  });
}

// alpha * A' * B' + beta * C, where ' transposes if asked to and C broadcasts.
void gemm(const Call& call) {
  const ir::Attributes& attributes = call.node.attributes;
  const bool transpose_a = attributes.get_int("transA", 0) != 0;
  const bool transpose_b = attributes.get_int("transB", 0) != 0;
  const double alpha = attributes.get_float("alpha", 1);
  const double beta = attributes.get_float("beta", 1);
  const ir::Shape& shape = *call.results[0].shape;
  const ir::Shape& a = *call.operands[0].shape;
  const ir::Shape& b = *call.operands[1].shape;
  const int64_t k = transpose_a ? a[0] : a[1];
  const Strides c_strides =
      has_operand(call, 2) ? broadcast_strides(*call.operands[2].shape, shape) : Strides{0, 0};

  visit(MatrixTypes{}, call.results[0].dtype, [&]<typename T>(std::type_identity<T>) {
    const Matrix<T> left{data<T>(call.operands[0]), transpose_a ? 1 : a[1], transpose_a ? a[1] : 1};
    const Matrix<T> right{data<T>(call.operands[1]), transpose_b ? 1 : b[1],
                          transpose_b ? b[1] : 1};
    const T* bias = data<T>(operand(call, 2));
    std::vector<Accumulator<T>> totals(static_cast<size_t>(shape[1]));
    for (int64_t i = 0; i < shape[0]; ++i) {
      multiply_row(left, right, i, k, shape[1], totals);
      for (int64_t j = 0; j < shape[1]; ++j) {
        double value = alpha * static_cast<double>(totals[static_cast<size_t>(j)]);
        if (bias != nullptr) {
          value += beta * static_cast<double>(
                              static_cast<Compute<T>>(bias[i * c_strides[0] + j * c_strides[1]]));
        }
        data<T>(call.results[0])[i * shape[1] + j] = convert<T>(value);
      }
    }
  });
}

constexpr KernelRow kRows[] = {
    {"MatMul", matmul},
    {"Gemm", gemm},
};

}  // namespace

std::span<const KernelRow> matmul_kernels() { return kRows; }

}  // namespace autosp::reference

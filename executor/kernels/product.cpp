#include "executor/kernels/product.h"

#include <cblas.h>

#include <algorithm>

#include "base/error.h"

namespace autosp::executor {

namespace {

void check_sizes(const Product& p) {
  if (p.n <= p.most && p.k <= p.most && (p.m <= p.most || !p.transpose_a)) return;
  throw Error("a product of {}{} x {} by {}{} x {} is larger than OpenBLAS can count",
              p.transpose_a ? "transposed " : "", p.m, p.k, p.transpose_b ? "transposed " : "", p.k,
              p.n)
      .note("its sizes and strides are 32-bit integers")
      .help("shard over more ranks, or for a shorter sequence");
}

// The product of `rows` rows of a.
template <typename T>
void call_blas(const Product& p, int64_t rows, const T* a, const T* b, T* c) {
  const auto op_a = p.transpose_a ? CblasTrans : CblasNoTrans;
  const auto op_b = p.transpose_b ? CblasTrans : CblasNoTrans;
  const auto m = static_cast<blasint>(rows);
  const auto n = static_cast<blasint>(p.n);
  const auto k = static_cast<blasint>(p.k);
  const blasint row_a = p.transpose_a ? m : k;
  const blasint row_b = p.transpose_b ? k : n;
  if constexpr (std::is_same_v<T, float>) {
    cblas_sgemm(CblasRowMajor, op_a, op_b, m, n, k, static_cast<float>(p.alpha), a, row_a, b, row_b,
                static_cast<float>(p.beta), c, n);
  } else {
    cblas_dgemm(CblasRowMajor, op_a, op_b, m, n, k, p.alpha, a, row_a, b, row_b, p.beta, c, n);
  }
}

template <typename T>
void multiply(const Product& p, const T* a, const T* b, T* c) {
  if (p.m == 0 || p.n == 0) return;
  if (p.k == 0) {
    if (p.beta == 0) std::fill_n(c, p.m * p.n, T{0});
    if (p.beta != 0 && p.beta != 1) {
      std::transform(c, c + p.m * p.n, c, [&](T x) { return static_cast<T>(p.beta * x); });
    }
    return;
  }
  check_sizes(p);
  for (int64_t row = 0; row < p.m; row += p.most) {
    call_blas(p, std::min(p.most, p.m - row), a + row * p.k, b, c + row * p.n);
  }
}

}  // namespace

void Product::operator()(const float* a, const float* b, float* c) const {
  multiply(*this, a, b, c);
}

void Product::operator()(const double* a, const double* b, double* c) const {
  multiply(*this, a, b, c);
}

}  // namespace autosp::executor

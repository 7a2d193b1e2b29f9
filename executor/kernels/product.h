// One matrix product through CBLAS.
#pragma once

#include <cstdint>
#include <limits>

namespace autosp::executor {

// c (m x n) = alpha * op(a) * op(b) + beta * c; a and b are stored as they are before op. CBLAS
// counts in 32 bits: more rows are taken in panels; more columns, terms, or rows of a transposed
// operand are an Error.
struct Product {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  bool transpose_a = false;
  bool transpose_b = false;
  double alpha = 1;
  double beta = 0;
  int64_t most = std::numeric_limits<int32_t>::max();  // rows, columns or terms of one call

  void operator()(const float* a, const float* b, float* c) const;
  void operator()(const double* a, const double* b, double* c) const;
};

}  // namespace autosp::executor

// MatMul and Gemm as batches of products of matrices.
#pragma once

#include "cuda/kernels/grid.h"
#include "executor/kernel_table.h"

namespace autosp::kernels {

// c (m x n) = alpha * op(a) * op(b) + beta * c, row-major; a and b are stored as they are before
// op.
struct MatmulProblem {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  bool transpose_a = false;
  bool transpose_b = false;
  double alpha = 1;
  double beta = 0;
  Grid<3> batch;  // where each product's a, b and c begin
};

// Of MatMul, autosp::MatMul (transA, transB) and Gemm; where a Gemm has a bias, it is to be in c
// before (spread_bias).
MatmulProblem matmul_problem(const executor::KernelCall& call);

// Any of them, an element of the result per thread.
void multiply_by_threads(const executor::KernelCall& call);

// Broadcasts a Gemm's bias to the result, if there is one.
void spread_bias(const executor::KernelCall& call);

}  // namespace autosp::kernels

// MatMul, Gemm and FusedMatMul as batches of products of matrices.
#pragma once

#include "cuda/kernels/grid.h"
#include "executor/kernel_table.h"

namespace autosp::kernels {

// c (m x n) = alpha * op(a) * op(b) + beta * addend + bias, then a ReLU if `relu`; row-major. a and
// b are stored as they are before op.
struct MatmulProblem {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  bool transpose_a = false;
  bool transpose_b = false;
  double alpha = 1;
  double beta = 0;
  const void* addend = nullptr;  // null: none. It lies as c does, and may be c
  const void* bias = nullptr;    // null: none. n entries, for every row of every product
  bool relu = false;
  Grid<3> batch;  // where each product's a, b and c begin
};

// Of MatMul, autosp::MatMul (transA, transB), autosp::FusedMatMul (executor/absorb_epilogues.h) and
// Gemm; where a Gemm has a bias, it is to be in c before (spread_bias).
MatmulProblem matmul_problem(const executor::KernelCall& call);

// Any of them, an element of the result per thread.
void multiply_by_threads(const executor::KernelCall& call, const MatmulProblem& problem);

// Adds the bias to the result, in which all the rest is, and does the ReLU.
void finish_product(const executor::KernelCall& call, const MatmulProblem& problem);

// Broadcasts a Gemm's bias to the result, if there is one.
void spread_bias(const executor::KernelCall& call);

}  // namespace autosp::kernels

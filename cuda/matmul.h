// Products of matrices through cuBLASLt, summed in float32 (float64 of float64).
#pragma once

#include <cublasLt.h>

#include <map>
#include <span>

#include "executor/kernel_table.h"

namespace autosp::cuda {

// One strided batch of products as cuBLASLt counts: column-major, so that what is row-major here is
// its transpose there: c^T = b^T a^T.
struct LtProblem {
  cudaDataType_t type = CUDA_R_32F;
  int64_t m = 0, n = 0, k = 0;  // row-major c is m x n
  bool transpose_a = false, transpose_b = false;
  int64_t batch = 1;
  int64_t a_stride = 0, b_stride = 0, c_stride = 0;  // elements
  unsigned alignment = 64;                           // bytes, of all of them
  auto operator<=>(const LtProblem&) const = default;
};

// The algorithms chosen so far, and a workspace; of one device and thread.
class Matmul {
 public:
  explicit Matmul(bool tf32);
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  // c = alpha * op(a) * op(b) + beta * c. False: cuBLASLt has no algorithm for it, and nothing was
  // done. Throws Error.
  bool run(const LtProblem& problem, const void* a, const void* b, void* c, double alpha,
           double beta, cudaStream_t stream);

 private:
  struct Plan;
  const Plan& plan(const LtProblem& problem);

  bool tf32_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  std::map<LtProblem, std::unique_ptr<Plan>> plans_;
};

// MatMul, autosp::MatMul and Gemm of floats.
std::span<const executor::KernelRow> cublas_rows();

}  // namespace autosp::cuda

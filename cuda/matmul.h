// Products of matrices through cuBLASLt, summed in float32 (float64 of float64).
#pragma once

#include <map>
#include <memory>
#include <span>

#include "cuda/lt_problem.h"
#include "executor/kernel_table.h"

namespace autosp::cuda {

// The algorithms chosen so far, and a workspace; of one device and thread.
class Matmul {
 public:
  explicit Matmul(bool tf32);
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  // Whether cuBLASLt has an algorithm for it. Throws Error.
  bool takes(const LtProblem& problem);

  struct Operands {
    const void* a = nullptr;
    const void* b = nullptr;
    const void* addend = nullptr;  // null: none; may be c
    const void* bias = nullptr;    // where the problem has one
    void* c = nullptr;
  };
  // c = alpha * op(a) * op(b) + beta * addend, and the problem's epilogue; of what it takes. Throws
  // Error.
  void run(const LtProblem& problem, const Operands& operands, double alpha, double beta,
           cudaStream_t stream);

 private:
  struct Plan;
  Plan& plan(const LtProblem& problem);

  bool tf32_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  std::map<LtProblem, std::unique_ptr<Plan>> plans_;
};

// MatMul, autosp::MatMul, autosp::FusedMatMul and Gemm of floats.
std::span<const executor::KernelRow> cublas_rows();

}  // namespace autosp::cuda

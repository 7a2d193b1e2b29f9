// Products of matrices in cuBLASLt's words. Making these needs its library, but no GPU.
#pragma once

#include <cublasLt.h>

#include <compare>
#include <cstdint>

#include "cuda/library.h"

namespace autosp::cuda {

// The functions of cuBLASLt, which is opened when the first of them is asked for.
struct Lt {
// NOLINTBEGIN(bugprone-macro-parentheses): it declares a member
#define AUTOSP_LT(name)              \
  decltype(::cublasLt##name)* name = \
      cublaslt().function<decltype(::cublasLt##name)>("cublasLt" #name)
  AUTOSP_LT(Create);
  AUTOSP_LT(Destroy);
  AUTOSP_LT(GetStatusString);
  AUTOSP_LT(Matmul);
  AUTOSP_LT(MatmulAlgoGetHeuristic);
  AUTOSP_LT(MatmulDescCreate);
  AUTOSP_LT(MatmulDescDestroy);
  AUTOSP_LT(MatmulDescGetAttribute);
  AUTOSP_LT(MatmulDescSetAttribute);
  AUTOSP_LT(MatrixLayoutCreate);
  AUTOSP_LT(MatrixLayoutDestroy);
  AUTOSP_LT(MatrixLayoutGetAttribute);
  AUTOSP_LT(MatrixLayoutSetAttribute);
  AUTOSP_LT(MatmulPreferenceCreate);
  AUTOSP_LT(MatmulPreferenceDestroy);
  AUTOSP_LT(MatmulPreferenceSetAttribute);
#undef AUTOSP_LT
  // NOLINTEND(bugprone-macro-parentheses)
};

const Lt& lt();

// Throws Error unless what was done, `what`, has succeeded.
void check_lt(cublasStatus_t status, const char* what);

// One strided batch of products as cuBLASLt counts: column-major, so that what is row-major here is
// its transpose there: c^T = b^T a^T. A row of c is a column there, and its columns are rows: a
// bias with an entry for each of c's columns is the one that cuBLASLt adds.
struct LtProblem {
  cudaDataType_t type = CUDA_R_32F;
  int64_t m = 0, n = 0, k = 0;  // row-major c is m x n
  bool transpose_a = false, transpose_b = false;
  int64_t batch = 1;
  int64_t a_stride = 0, b_stride = 0, c_stride = 0;  // elements
  unsigned alignment = 64;                           // bytes, of all of them
  bool bias = false, relu = false;                   // what follows the product, in this order
  auto operator<=>(const LtProblem&) const = default;
};

// The descriptors of a problem.
struct LtDescription {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t first = nullptr;   // b
  cublasLtMatrixLayout_t second = nullptr;  // a
  cublasLtMatrixLayout_t result = nullptr;  // c, and what is added to it

  // Throws Error.
  LtDescription(const LtProblem& problem, bool tf32);
  ~LtDescription();
  LtDescription(const LtDescription&) = delete;
  LtDescription& operator=(const LtDescription&) = delete;

  // Where the bias of the next product lies.
  void set_bias(const void* bias);

 private:
  template <typename T>
  void set(cublasLtMatmulDescAttributes_t which, const T& value);
};

}  // namespace autosp::cuda

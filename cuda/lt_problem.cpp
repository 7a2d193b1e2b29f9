#include "cuda/lt_problem.h"

#include <fmt/format.h>

#include "base/error.h"

namespace autosp::cuda {

const Lt& lt() {
  static const Lt kLt;
  return kLt;
}

void check_lt(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error("cuBLASLt: {}: {}", what, lt().GetStatusString(status))
      .note(fmt::format("cuBLASLt is {}", cublaslt().name()))
      .help("run with --device cpu, and report the node that is named");
}

namespace {

cublasLtMatrixLayout_t layout(cudaDataType_t type, int64_t rows, int64_t columns, int64_t batch,
                              int64_t stride) {
  cublasLtMatrixLayout_t result = nullptr;
  check_lt(lt().MatrixLayoutCreate(&result, type, static_cast<uint64_t>(rows),
                                   static_cast<uint64_t>(columns), rows),
           "describing a matrix");
  const auto count = static_cast<int32_t>(batch);
  check_lt(lt().MatrixLayoutSetAttribute(result, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                         sizeof(count)),
           "describing a batch");
  check_lt(lt().MatrixLayoutSetAttribute(result, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                         &stride, sizeof(stride)),
           "describing a batch");
  return result;
}

cublasComputeType_t compute_type(const LtProblem& p, bool tf32) {
  if (p.type == CUDA_R_64F) return CUBLAS_COMPUTE_64F;
  return tf32 && p.type == CUDA_R_32F ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

cublasLtEpilogue_t epilogue(const LtProblem& p) {
  if (p.bias) return p.relu ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_BIAS;
  return p.relu ? CUBLASLT_EPILOGUE_RELU : CUBLASLT_EPILOGUE_DEFAULT;
}

}  // namespace

template <typename T>
void LtDescription::set(cublasLtMatmulDescAttributes_t which, const T& value) {
  check_lt(lt().MatmulDescSetAttribute(product, which, &value, sizeof(value)),
           "describing a product");
}

LtDescription::LtDescription(const LtProblem& p, bool tf32) {
  const cudaDataType_t scale = p.type == CUDA_R_64F ? CUDA_R_64F : CUDA_R_32F;
  check_lt(lt().MatmulDescCreate(&product, compute_type(p, tf32), scale), "describing a product");
  set(CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue(p));
  // An algorithm is chosen by the address's alignment: by no more than all problems like it have.
  if (p.bias) set_bias(reinterpret_cast<const void*>(static_cast<uintptr_t>(p.alignment)));
  first = p.transpose_b ? layout(p.type, p.k, p.n, p.batch, p.b_stride)
                        : layout(p.type, p.n, p.k, p.batch, p.b_stride);
  second = p.transpose_a ? layout(p.type, p.m, p.k, p.batch, p.a_stride)
                         : layout(p.type, p.k, p.m, p.batch, p.a_stride);
  result = layout(p.type, p.n, p.m, p.batch, p.c_stride);
}

LtDescription::~LtDescription() {
  for (cublasLtMatrixLayout_t matrix : {first, second, result}) {
    if (matrix != nullptr) lt().MatrixLayoutDestroy(matrix);
  }
  if (product != nullptr) lt().MatmulDescDestroy(product);
}

void LtDescription::set_bias(const void* bias) { set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias); }

}  // namespace autosp::cuda

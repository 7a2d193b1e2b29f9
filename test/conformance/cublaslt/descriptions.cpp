// What cuBLASLt is told of products, by its own library, without a GPU: each descriptor read back.
#include <gtest/gtest.h>

#include "cuda/lt_problem.h"

namespace autosp::cuda {
namespace {

class LtDescriptions : public testing::Test {
 protected:
  void SetUp() override {
    if (cublaslt().handle() == nullptr) GTEST_SKIP() << "cuBLASLt was not found";
  }
};

template <typename T>
T told(const LtDescription& description, cublasLtMatmulDescAttributes_t which) {
  T value{};
  size_t written = 0;
  check_lt(lt().MatmulDescGetAttribute(description.product, which, &value, sizeof(value), &written),
           "reading a product");
  EXPECT_EQ(written, sizeof(value));
  return value;
}

template <typename T>
T told(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t which) {
  T value{};
  size_t written = 0;
  check_lt(lt().MatrixLayoutGetAttribute(layout, which, &value, sizeof(value), &written),
           "reading a matrix");
  return value;
}

void expect_matrix(cublasLtMatrixLayout_t layout, uint64_t rows, uint64_t columns, int64_t stride) {
  EXPECT_EQ(told<uint64_t>(layout, CUBLASLT_MATRIX_LAYOUT_ROWS), rows);
  EXPECT_EQ(told<uint64_t>(layout, CUBLASLT_MATRIX_LAYOUT_COLS), columns);
  EXPECT_EQ(told<int64_t>(layout, CUBLASLT_MATRIX_LAYOUT_LD), static_cast<int64_t>(rows));
  EXPECT_EQ(told<int64_t>(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET), stride);
  EXPECT_EQ(told<int32_t>(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT), 3);
}

TEST_F(LtDescriptions, ExchangeRowsAndColumns) {
  const LtProblem problem{.type = CUDA_R_16BF,
                          .m = 5,
                          .n = 7,
                          .k = 11,
                          .transpose_b = true,
                          .batch = 3,
                          .a_stride = 55,
                          .b_stride = 0,
                          .c_stride = 35};
  const LtDescription description(problem, false);
  expect_matrix(description.first, 11, 7, 0);
  expect_matrix(description.second, 11, 5, 55);
  expect_matrix(description.result, 7, 5, 35);  // a column of the bias's entries for each row of c
  EXPECT_EQ(told<int32_t>(description, CUBLASLT_MATMUL_DESC_TRANSA), CUBLAS_OP_T);
  EXPECT_EQ(told<int32_t>(description, CUBLASLT_MATMUL_DESC_TRANSB), CUBLAS_OP_N);
}

TEST_F(LtDescriptions, SayWhatFollowsTheProduct) {
  const auto epilogue = [](bool bias, bool relu) {
    const LtProblem problem{.m = 5, .n = 7, .k = 11, .bias = bias, .relu = relu};
    return told<uint32_t>(LtDescription(problem, false), CUBLASLT_MATMUL_DESC_EPILOGUE);
  };
  EXPECT_EQ(epilogue(false, false), CUBLASLT_EPILOGUE_DEFAULT);
  EXPECT_EQ(epilogue(true, false), CUBLASLT_EPILOGUE_BIAS);
  EXPECT_EQ(epilogue(false, true), CUBLASLT_EPILOGUE_RELU);
  EXPECT_EQ(epilogue(true, true), CUBLASLT_EPILOGUE_RELU_BIAS);
}

TEST_F(LtDescriptions, ChooseByTheCommonAlignmentAndPointToTheBias) {
  LtDescription description({.m = 5, .n = 7, .k = 11, .alignment = 16, .bias = true}, false);
  EXPECT_EQ(told<uintptr_t>(description, CUBLASLT_MATMUL_DESC_BIAS_POINTER), 16);
  const float bias[7] = {};
  description.set_bias(bias);
  EXPECT_EQ(told<const void*>(description, CUBLASLT_MATMUL_DESC_BIAS_POINTER), bias);
}

TEST_F(LtDescriptions, SumInFloat32OrFloat64) {
  const auto compute = [](cudaDataType_t type, bool tf32) {
    const LtDescription description({.type = type, .m = 5, .n = 7, .k = 11}, tf32);
    return told<int32_t>(description, CUBLASLT_MATMUL_DESC_COMPUTE_TYPE);
  };
  EXPECT_EQ(compute(CUDA_R_16F, true), CUBLAS_COMPUTE_32F);
  EXPECT_EQ(compute(CUDA_R_32F, false), CUBLAS_COMPUTE_32F);
  EXPECT_EQ(compute(CUDA_R_32F, true), CUBLAS_COMPUTE_32F_FAST_TF32);
  EXPECT_EQ(compute(CUDA_R_64F, false), CUBLAS_COMPUTE_64F);
}

}  // namespace
}  // namespace autosp::cuda

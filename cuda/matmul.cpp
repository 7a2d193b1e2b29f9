#include "cuda/matmul.h"

#include <algorithm>

#include "cuda/device.h"
#include "cuda/kernels/map.h"
#include "cuda/kernels/matmul_problem.h"
#include "cuda/kernels/rows.h"
#include "cuda/library.h"
#include "cuda/status.h"

namespace autosp::cuda {

namespace {

constexpr size_t kWorkspace = size_t{32} << 20;  // bytes: what NVIDIA advises for Hopper

// The functions of cuBLASLt, which is opened when the first product is asked for.
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
  AUTOSP_LT(MatmulDescSetAttribute);
  AUTOSP_LT(MatrixLayoutCreate);
  AUTOSP_LT(MatrixLayoutDestroy);
  AUTOSP_LT(MatrixLayoutSetAttribute);
  AUTOSP_LT(MatmulPreferenceCreate);
  AUTOSP_LT(MatmulPreferenceDestroy);
  AUTOSP_LT(MatmulPreferenceSetAttribute);
#undef AUTOSP_LT
  // NOLINTEND(bugprone-macro-parentheses)
};

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

cublasLtMatmulDesc_t description(const LtProblem& p, bool tf32) {
  const bool wide = p.type == CUDA_R_64F;
  const bool rounds = tf32 && p.type == CUDA_R_32F;
  cublasLtMatmulDesc_t result = nullptr;
  check_lt(lt().MatmulDescCreate(&result,
                                 wide     ? CUBLAS_COMPUTE_64F
                                 : rounds ? CUBLAS_COMPUTE_32F_FAST_TF32
                                          : CUBLAS_COMPUTE_32F,
                                 wide ? CUDA_R_64F : CUDA_R_32F),
           "describing a product");
  const auto set = [&](cublasLtMatmulDescAttributes_t which, bool transposed) {
    const cublasOperation_t operation = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    check_lt(lt().MatmulDescSetAttribute(result, which, &operation, sizeof(operation)),
             "describing a product");
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_b);
  set(CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_a);
  return result;
}

}  // namespace

struct Matmul::Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t first = nullptr;   // b
  cublasLtMatrixLayout_t second = nullptr;  // a
  cublasLtMatrixLayout_t result = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool exists = false;

  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    for (cublasLtMatrixLayout_t matrix : {first, second, result}) {
      if (matrix != nullptr) lt().MatrixLayoutDestroy(matrix);
    }
    if (product != nullptr) lt().MatmulDescDestroy(product);
  }

  void choose(cublasLtHandle_t handle, unsigned alignment) {
    cublasLtMatmulPreference_t preference = nullptr;
    check_lt(lt().MatmulPreferenceCreate(&preference), "choosing an algorithm");
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t which, const auto& value) {
      check_lt(lt().MatmulPreferenceSetAttribute(preference, which, &value, sizeof(value)),
               "choosing an algorithm");
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
    for (const auto which :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      set(which, static_cast<uint32_t>(alignment));
    }
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const cublasStatus_t status = lt().MatmulAlgoGetHeuristic(
        handle, product, first, second, result, result, preference, 1, &found, &count);
    lt().MatmulPreferenceDestroy(preference);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) check_lt(status, "choosing an algorithm");
    exists = status == CUBLAS_STATUS_SUCCESS && count > 0 && found.state == CUBLAS_STATUS_SUCCESS;
    algorithm = found.algo;
  }
};

Matmul::Matmul(bool tf32) : tf32_(tf32) {
  check_lt(lt().Create(&handle_), "starting");
  check(cudaMalloc(&workspace_, kWorkspace), "taking memory for products of matrices");
}

Matmul::~Matmul() {
  plans_.clear();
  cudaFree(workspace_);
  lt().Destroy(handle_);
}

const Matmul::Plan& Matmul::plan(const LtProblem& p) {
  std::unique_ptr<Plan>& found = plans_[p];
  if (found) return *found;
  auto made = std::make_unique<Plan>();
  made->product = description(p, tf32_);
  made->first = p.transpose_b ? layout(p.type, p.k, p.n, p.batch, p.b_stride)
                              : layout(p.type, p.n, p.k, p.batch, p.b_stride);
  made->second = p.transpose_a ? layout(p.type, p.m, p.k, p.batch, p.a_stride)
                               : layout(p.type, p.k, p.m, p.batch, p.a_stride);
  made->result = layout(p.type, p.n, p.m, p.batch, p.c_stride);
  made->choose(handle_, p.alignment);
  found = std::move(made);
  return *found;
}

bool Matmul::run(const LtProblem& problem, const void* a, const void* b, void* c, double alpha,
                 double beta, cudaStream_t stream) {
  const Plan& p = plan(problem);
  if (!p.exists) return false;
  const auto alpha_32 = static_cast<float>(alpha);
  const auto beta_32 = static_cast<float>(beta);
  const bool wide = problem.type == CUDA_R_64F;
  check_lt(lt().Matmul(handle_, p.product, wide ? static_cast<const void*>(&alpha) : &alpha_32, b,
                       p.first, a, p.second, wide ? static_cast<const void*>(&beta) : &beta_32, c,
                       p.result, c, p.result, &p.algorithm, workspace_, kWorkspace, stream),
           "multiplying matrices");
  return true;
}

namespace {

cudaDataType_t type_of(ir::DataType type) {
  switch (type) {
    case ir::DataType::kFloat16:
      return CUDA_R_16F;
    case ir::DataType::kBFloat16:
      return CUDA_R_16BF;
    case ir::DataType::kFloat64:
      return CUDA_R_64F;
    default:
      return CUDA_R_32F;
  }
}

// The largest power of two, up to what every buffer of the arena has, that all of these are
// multiples of: where a buffer happens to lie must not choose another order of sums.
unsigned common_alignment(std::initializer_list<uint64_t> addresses) {
  uint64_t bits = 64;
  for (const uint64_t address : addresses) bits |= address;
  return static_cast<unsigned>(bits & (~bits + 1));
}

// The innermost axis of the batch is cuBLASLt's own; the others are counted out here.
void matmul(const executor::KernelCall& call) {
  const kernels::MatmulProblem p = kernels::matmul_problem(call);
  if (p.m == 0 || p.n == 0 || p.batch.count == 0) return;
  if (p.k == 0) return kernels::multiply_by_threads(call);
  kernels::spread_bias(call);
  const auto size = static_cast<int64_t>(ir::element_size(call.call.results[0].dtype));
  const int inner = p.batch.axes - 1;
  LtProblem lt{.type = type_of(call.call.results[0].dtype),
               .m = p.m,
               .n = p.n,
               .k = p.k,
               .transpose_a = p.transpose_a,
               .transpose_b = p.transpose_b};
  if (inner >= 0) {
    lt.batch = p.batch.extent[inner];
    lt.a_stride = p.batch.stride[0][inner];
    lt.b_stride = p.batch.stride[1][inner];
    lt.c_stride = p.batch.stride[2][inner];
  }
  CudaDevice& device = device_of(call.device);
  for (int64_t first = 0; first < p.batch.count; first += lt.batch) {
    const auto at = p.batch.offsets(first);
    const auto* a = static_cast<const std::byte*>(call.call.operands[0].data) + at.at[0] * size;
    const auto* b = static_cast<const std::byte*>(call.call.operands[1].data) + at.at[1] * size;
    auto* c = static_cast<std::byte*>(call.call.results[0].data) + at.at[2] * size;
    lt.alignment = common_alignment(
        {reinterpret_cast<uint64_t>(a), reinterpret_cast<uint64_t>(b),
         reinterpret_cast<uint64_t>(c), static_cast<uint64_t>(lt.a_stride * size),
         static_cast<uint64_t>(lt.b_stride * size), static_cast<uint64_t>(lt.c_stride * size)});
    if (!device.matmul().run(lt, a, b, c, p.alpha, p.beta, device.stream(call.stream))) {
      return kernels::multiply_by_threads(call);  // from the beginning
    }
  }
}

constexpr executor::KernelRow kRows[] = {
    {"", "MatMul", kernels::takes<kernels::FloatTypes>, matmul},
    {ir::kAutospDomain, "MatMul", kernels::takes<kernels::FloatTypes>, matmul},
    {"", "Gemm", kernels::takes<kernels::FloatTypes>, matmul},
};

}  // namespace

std::span<const executor::KernelRow> cublas_rows() { return kRows; }

}  // namespace autosp::cuda

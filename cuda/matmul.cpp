#include "cuda/matmul.h"

#include "cuda/device.h"
#include "cuda/kernels/map.h"
#include "cuda/kernels/matmul_problem.h"
#include "cuda/kernels/rows.h"
#include "cuda/status.h"
#include "executor/absorb_epilogues.h"

namespace autosp::cuda {

namespace {

constexpr size_t kWorkspace = size_t{32} << 20;  // bytes: what NVIDIA advises for Hopper

}  // namespace

struct Matmul::Plan {
  LtDescription description;
  cublasLtMatmulAlgo_t algorithm{};
  bool exists = false;

  Plan(const LtProblem& problem, bool tf32) : description(problem, tf32) {}

  void choose(cublasLtHandle_t handle, const LtProblem& problem) {
    cublasLtMatmulPreference_t preference = nullptr;
    check_lt(lt().MatmulPreferenceCreate(&preference), "choosing an algorithm");
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t which, const auto& value) {
      check_lt(lt().MatmulPreferenceSetAttribute(preference, which, &value, sizeof(value)),
               "choosing an algorithm");
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
    // Partial sums are kept in the type that products are computed in, not in the result's.
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    for (const auto which :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      set(which, static_cast<uint32_t>(problem.alignment));
    }
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const auto& [product, first, second, result] = description;
    const cublasStatus_t status = lt().MatmulAlgoGetHeuristic(
        handle, product, first, second, result, result, preference, 1, &found, &count);
    lt().MatmulPreferenceDestroy(preference);
    // What follows a product may be refused as an invalid value too.
    const bool refuses = status == CUBLAS_STATUS_NOT_SUPPORTED ||
                         (status == CUBLAS_STATUS_INVALID_VALUE && (problem.bias || problem.relu));
    if (!refuses) check_lt(status, "choosing an algorithm");
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

Matmul::Plan& Matmul::plan(const LtProblem& problem) {
  std::unique_ptr<Plan>& found = plans_[problem];
  if (found) return *found;
  auto made = std::make_unique<Plan>(problem, tf32_);
  made->choose(handle_, problem);
  found = std::move(made);
  return *found;
}

bool Matmul::takes(const LtProblem& problem) { return plan(problem).exists; }

void Matmul::run(const LtProblem& problem, const Operands& operands, double alpha, double beta,
                 cudaStream_t stream) {
  Plan& p = plan(problem);
  if (problem.bias) p.description.set_bias(operands.bias);
  const auto alpha_32 = static_cast<float>(alpha);
  const auto beta_32 = static_cast<float>(beta);
  const bool wide = problem.type == CUDA_R_64F;
  const void* addend = operands.addend != nullptr ? operands.addend : operands.c;
  const auto& [product, first, second, result] = p.description;
  check_lt(
      lt().Matmul(handle_, product, wide ? static_cast<const void*>(&alpha) : &alpha_32, operands.b,
                  first, operands.a, second, wide ? static_cast<const void*>(&beta) : &beta_32,
                  addend, result, operands.c, result, &p.algorithm, workspace_, kWorkspace, stream),
      "multiplying matrices");
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

// The largest power of two, up to what every buffer of the arena has, that all operands of all
// products of the batch are aligned to: where a buffer happens to lie must not choose another order
// of sums.
unsigned common_alignment(const executor::KernelCall& call, const kernels::MatmulProblem& p) {
  const auto size = static_cast<int64_t>(ir::element_size(call.call.results[0].dtype));
  uint64_t bits = 64;
  for (const void* address : {call.call.operands[0].data, call.call.operands[1].data, p.addend,
                              p.bias, static_cast<const void*>(call.call.results[0].data)}) {
    bits |= reinterpret_cast<uint64_t>(address);
  }
  for (const auto& strides : p.batch.stride) {
    for (int axis = 0; axis < p.batch.axes; ++axis) {
      bits |= static_cast<uint64_t>(strides[axis] * size);
    }
  }
  return static_cast<unsigned>(bits & (~bits + 1));
}

// The innermost axis of the batch is cuBLASLt's own.
LtProblem lt_problem(const executor::KernelCall& call, const kernels::MatmulProblem& p) {
  LtProblem problem{.type = type_of(call.call.results[0].dtype),
                    .m = p.m,
                    .n = p.n,
                    .k = p.k,
                    .transpose_a = p.transpose_a,
                    .transpose_b = p.transpose_b,
                    .alignment = common_alignment(call, p),
                    .bias = p.bias != nullptr,
                    .relu = p.relu};
  if (const int inner = p.batch.axes - 1; inner >= 0) {
    problem.batch = p.batch.extent[inner];
    problem.a_stride = p.batch.stride[0][inner];
    problem.b_stride = p.batch.stride[1][inner];
    problem.c_stride = p.batch.stride[2][inner];
  }
  return problem;
}

// The other axes of the batch are counted out here.
void multiply(const executor::KernelCall& call, const kernels::MatmulProblem& p,
              const LtProblem& problem) {
  CudaDevice& device = device_of(call.device);
  const auto size = static_cast<int64_t>(ir::element_size(call.call.results[0].dtype));
  for (int64_t first = 0; first < p.batch.count; first += problem.batch) {
    const auto at = p.batch.offsets(first);
    const auto part = [&](const void* data, int operand) -> const std::byte* {
      return data == nullptr ? nullptr
                             : static_cast<const std::byte*>(data) + at.at[operand] * size;
    };
    device.matmul().run(problem,
                        {.a = part(call.call.operands[0].data, 0),
                         .b = part(call.call.operands[1].data, 1),
                         .addend = part(p.addend, 2),
                         .bias = p.bias,
                         .c = static_cast<std::byte*>(call.call.results[0].data) + at.at[2] * size},
                        p.alpha, p.beta, device.stream(call.stream));
  }
}

// What cuBLASLt does of it is known before any of it is queued: all, all but the bias and the ReLU,
// which a kernel then does, or nothing.
void matmul(const executor::KernelCall& call) {
  const kernels::MatmulProblem p = kernels::matmul_problem(call);
  if (p.m == 0 || p.n == 0 || p.batch.count == 0) return;
  kernels::spread_bias(call);
  if (p.k == 0) return kernels::multiply_by_threads(call, p);
  const LtProblem whole = lt_problem(call, p);
  LtProblem product = whole;
  product.bias = product.relu = false;
  Matmul& matmul = device_of(call.device).matmul();
  if (matmul.takes(whole)) {
    multiply(call, p, whole);
  } else if (matmul.takes(product)) {
    multiply(call, p, product);
    kernels::finish_product(call, p);
  } else {
    kernels::multiply_by_threads(call, p);
  }
}

constexpr executor::KernelRow kRows[] = {
    {"", "MatMul", kernels::takes<kernels::FloatTypes>, matmul},
    {ir::kAutospDomain, "MatMul", kernels::takes<kernels::FloatTypes>, matmul},
    {ir::kAutospDomain, executor::kFusedMatMul, kernels::takes<kernels::FloatTypes>, matmul,
     nullptr, reference::Aliasing::kOperandTwo},
    {"", "Gemm", kernels::takes<kernels::FloatTypes>, matmul},
};

}  // namespace

std::span<const executor::KernelRow> cublas_rows() { return kRows; }

}  // namespace autosp::cuda

// Products of matrices, an element of the result per thread: for what cuBLASLt does not take.
#include "cuda/kernels/copy.h"
#include "cuda/kernels/map.h"
#include "cuda/kernels/matmul_problem.h"
#include "cuda/kernels/rows.h"
#include "cuda/kernels/tree.h"
#include "executor/absorb_epilogues.h"

namespace autosp::kernels {

namespace {

Strides scaled(Strides strides, int64_t by) {
  for (int64_t& stride : strides) stride *= by;
  return strides;
}

MatmulProblem of_matmul(ir::Shape a, ir::Shape b, ir::Shape c, bool transpose_a, bool transpose_b) {
  const bool vector_a = a.size() == 1;
  const bool vector_b = b.size() == 1;
  if (vector_a) a.insert(a.begin(), 1);
  if (vector_b) b.push_back(1);
  MatmulProblem p{.m = transpose_a ? a.back() : a[a.size() - 2],
                  .n = transpose_b ? b[b.size() - 2] : b.back(),
                  .k = transpose_a ? a[a.size() - 2] : a.back(),
                  .transpose_a = transpose_a,
                  .transpose_b = transpose_b,
                  .batch = {}};
  c.resize(c.size() - (vector_a ? 0 : 1) - (vector_b ? 0 : 1));
  a.resize(a.size() - 2);
  b.resize(b.size() - 2);
  // One matrix on the right: the rows of all batches are one tall matrix.
  if (ir::num_elements(b) == 1 && a == c && !transpose_a) {
    p.m *= ir::num_elements(a);
    return p;
  }
  p.batch = Grid<3>(
      c, {scaled(broadcast_strides(a, c), p.m * p.k), scaled(broadcast_strides(b, c), p.k * p.n),
          scaled(row_major_strides(c), p.m * p.n)});
  return p;
}

template <typename T>
struct Product {
  T* c;
  const T* a;
  const T* b;
  MatmulProblem p;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    using A = Total<T>;
    const int64_t column = i % p.n;
    const int64_t row = i / p.n % p.m;
    const auto at = p.batch.offsets(i / (p.m * p.n));
    const T* left = a + at.at[0] + (p.transpose_a ? row : row * p.k);
    const T* right = b + at.at[1] + (p.transpose_b ? column * p.k : column);
    const int64_t left_step = p.transpose_a ? p.m : 1;
    const int64_t right_step = p.transpose_b ? 1 : p.n;
    A sum = 0;
    for (int64_t k = 0; k < p.k; ++k) {
      sum += wide(left[k * left_step]) * wide(right[k * right_step]);
    }
    const int64_t to = at.at[2] + row * p.n + column;
    A result = static_cast<A>(p.alpha) * sum;
    if (p.addend != nullptr) {
      result += static_cast<A>(p.beta) * wide(static_cast<const T*>(p.addend)[to]);
    }
    if (p.bias != nullptr) result += wide(static_cast<const T*>(p.bias)[column]);
    if (p.relu && result < 0) result = 0;
    c[to] = T(static_cast<Compute<T>>(result));
  }

 private:
  AUTOSP_DEVICE static Total<T> wide(T x) {
    return static_cast<Total<T>>(static_cast<Compute<T>>(x));
  }
};

template <typename T>
struct Finish {
  T* c;
  const T* bias;  // null: none
  int64_t columns;
  bool relu;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    Compute<T> result = c[i];
    if (bias != nullptr) result += static_cast<Compute<T>>(bias[i % columns]);
    if (relu && result < 0) result = 0;
    c[i] = T(result);
  }
};

void matmul(const executor::KernelCall& call) {
  spread_bias(call);
  multiply_by_threads(call, matmul_problem(call));
}

constexpr KernelRow kRows[] = {
    {"", "MatMul", takes<NumberTypes>, matmul},
    {ir::kAutospDomain, "MatMul", takes<NumberTypes>, matmul},
    {ir::kAutospDomain, executor::kFusedMatMul, takes<FloatTypes>, matmul, nullptr,
     reference::Aliasing::kOperandTwo},
    {"", "Gemm", takes<FloatTypes>, matmul},
};

}  // namespace

void multiply_by_threads(const executor::KernelCall& call, const MatmulProblem& problem) {
  visit(NumberTypes{}, call.call.results[0].dtype, [&]<typename T>(std::type_identity<T>) {
    launch(Queue(call), problem.m * problem.n * problem.batch.count,
           Product<T>{data<T>(call.call.results[0]), data<T>(call.call.operands[0]),
                      data<T>(call.call.operands[1]), problem});
  });
}

void finish_product(const executor::KernelCall& call, const MatmulProblem& problem) {
  visit(FloatTypes{}, call.call.results[0].dtype, [&]<typename T>(std::type_identity<T>) {
    launch(Queue(call), problem.m * problem.n * problem.batch.count,
           Finish<T>{data<T>(call.call.results[0]), static_cast<const T*>(problem.bias), problem.n,
                     problem.relu});
  });
}

MatmulProblem matmul_problem(const executor::KernelCall& call) {
  const ir::Attributes& attributes = call.call.node.attributes;
  const ir::Shape& a = *call.call.operands[0].shape;
  const ir::Shape& b = *call.call.operands[1].shape;
  MatmulProblem p =
      of_matmul(a, b, *call.call.results[0].shape, attributes.get_int("transA", 0) != 0,
                attributes.get_int("transB", 0) != 0);
  p.alpha = attributes.get_float("alpha", 1);
  if (operand(call, 2)) p.beta = attributes.get_float("beta", 1);
  if (call.call.node.op == executor::kFusedMatMul) {
    p.addend = operand(call, 2).data;
    p.bias = operand(call, 3).data;
    p.relu = attributes.get_int("relu", 0) != 0;
  } else if (operand(call, 2)) {
    p.addend = call.call.results[0].data;
  }
  return p;
}

void spread_bias(const executor::KernelCall& call) {
  if (!call.call.node.is("Gemm")) return;
  const auto& bias = operand(call, 2);
  const auto& y = call.call.results[0];
  if (!bias) return;
  copy(Queue(call), {.shape = *y.shape,
                     .element_size = ir::element_size(y.dtype),
                     .to = y.data,
                     .to_strides = row_major_strides(*y.shape),
                     .from = bias.data,
                     .from_strides = broadcast_strides(*bias.shape, *y.shape)});
}

std::span<const KernelRow> matmul_rows() { return kRows; }

}  // namespace autosp::kernels

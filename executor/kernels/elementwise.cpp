// Elementwise functions of one contiguous float32 operand whose library versions are scalar. What
// only adds and multiplies is left to the reference kernels, which the compiler vectorizes.
#include <cmath>

#include "executor/kernels/rows.h"
#include "executor/kernels/simd.h"

namespace autosp::executor {

namespace {

AUTOSP_INLINE float gelu_tanh(float x) {
  constexpr float kScale = 0.7978845608F;  // sqrt(2 / pi)
  return 0.5F * x * (1.0F + simd_tanh(kScale * (x + 0.044715F * x * x * x)));
}

AUTOSP_SIMD void exp_all(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = simd_exp(x[i]);
}
AUTOSP_SIMD void sigmoid_all(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = simd_sigmoid(x[i]);
}
AUTOSP_SIMD void tanh_all(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = simd_tanh(x[i]);
}
AUTOSP_SIMD void gelu_tanh_all(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = gelu_tanh(x[i]);
}

template <void (*function)(const float*, float*, int64_t)>
void apply(const KernelCall& call) {
  function(static_cast<const float*>(call.call.operands[0].data),
           static_cast<float*>(call.call.results[0].data),
           ir::num_elements(*call.call.results[0].shape));
}

bool is_float(const ir::Graph& graph, const ir::Node& node) {
  return graph.type(node.outputs[0]).dtype == ir::DataType::kFloat32;
}
bool is_tanh_gelu(const ir::Graph& graph, const ir::Node& node) {
  return is_float(graph, node) && node.attributes.get_string("approximate", "none") == "tanh";
}

using enum reference::Aliasing;

constexpr KernelRow kRows[] = {
    {"", "Exp", is_float, apply<exp_all>, nullptr, kElementwise},
    {"", "Sigmoid", is_float, apply<sigmoid_all>, nullptr, kElementwise},
    {"", "Tanh", is_float, apply<tanh_all>, nullptr, kElementwise},
    {"", "Gelu", is_tanh_gelu, apply<gelu_tanh_all>, nullptr, kElementwise},
};

}  // namespace

std::span<const KernelRow> elementwise_rows() { return kRows; }

}  // namespace autosp::executor

// Activations and their gradients.
#include <cmath>
#include <numbers>

#include "transforms/canonicalize/microsoft/lowering.h"

namespace autosp::transforms::microsoft {

using ir::Builder;

namespace {

// Writes arithmetic as arithmetic.
struct Term {
  Builder* build;
  ValueId value;
};
Term operator+(Term a, Term b) { return {a.build, a.build->binary("Add", a.value, b.value)}; }
Term operator-(Term a, Term b) { return {a.build, a.build->binary("Sub", a.value, b.value)}; }
Term operator*(Term a, Term b) { return {a.build, a.build->binary("Mul", a.value, b.value)}; }
Term number(Term like, double value) {
  return {like.build, like.build->scalar_like(like.value, value)};
}
Term operator*(double a, Term b) { return number(b, a) * b; }
Term operator+(Term a, double b) { return a + number(a, b); }
Term operator-(double a, Term b) { return number(b, a) - b; }
Term apply(const char* op, Term x) { return {x.build, x.build->unary(op, x.value)}; }

Term operand(const Lowering& lowering, size_t k) {
  return {&lowering.build(), lowering.operand(k)};
}

// x + bias, when there is one.
Term biased(const Lowering& lowering, size_t x, size_t bias) {
  const Term value = operand(lowering, x);
  return lowering.has(bias) ? value + operand(lowering, bias) : value;
}

void lower_gelu(const Lowering& lowering, Term x, const char* approximation) {
  lowering.result(0, lowering.build().node("Gelu", {x.value}, lowering.result_type(0),
                                           {{"approximate", std::string(approximation)}}, "",
                                           lowering.name(0)));
}

// d/dx of x Φ(x): Φ(x) + x φ(x), Φ and φ the normal distribution and density.
Term gelu_slope(Term x) {
  const Term distribution = 0.5 * (apply("Erf", std::numbers::sqrt2 / 2 * x) + 1.0);
  const double peak = std::numbers::inv_sqrtpi / std::numbers::sqrt2;
  const Term density = peak * apply("Exp", -0.5 * (x * x));
  return distribution + x * density;
}

// d/dx of x (1 + tanh u) / 2 with u = sqrt(2/π) (x + 0.044715 x³).
Term tanh_gelu_slope(Term x) {
  constexpr double kCubic = 0.044715;
  const double scale = std::sqrt(2 / std::numbers::pi);
  const Term square = x * x;
  const Term tanh = apply("Tanh", scale * (x * (kCubic * square + 1.0)));
  const Term inner_slope = scale * (3 * kCubic * square + 1.0);
  return 0.5 * (tanh + 1.0) + 0.5 * (x * ((1.0 - tanh * tanh) * inner_slope));
}

void multiply_gradient(const Lowering& lowering, Term slope) {
  lowering.result(
      0, lowering.build().binary("Mul", lowering.operand(0), slope.value, lowering.name(0)));
}

Term scaled_for_quick_gelu(const Lowering& lowering, Term x) {
  return double{lowering.node.attributes.get_float("alpha", 1.702F)} * x;
}

void lower_quick_gelu(const Lowering& lowering) {
  const Term x = operand(lowering, 0);
  const Term gate = apply("Sigmoid", scaled_for_quick_gelu(lowering, x));
  lowering.result(0, lowering.build().binary("Mul", x.value, gate.value, lowering.name(0)));
}

void lower_quick_gelu_grad(const Lowering& lowering) {
  const Term scaled = scaled_for_quick_gelu(lowering, operand(lowering, 1));
  const Term gate = apply("Sigmoid", scaled);
  multiply_gradient(lowering, gate * (scaled * (1.0 - gate) + 1.0));
}

void lower_relu_grad(const Lowering& lowering) {
  Builder& build = lowering.build();
  const ValueId zero = build.scalar_like(lowering.operand(0), 0);
  const ValueId positive = build.binary("Greater", lowering.operand(1), zero);
  lowering.result(0, build.where(positive, lowering.operand(0), zero, lowering.name(0)));
}

// Y (dY - sum(dY Y)) over `axes`.
void lower_softmax_grad_over(const Lowering& lowering, std::vector<int64_t> axes) {
  Builder& build = lowering.build();
  const ValueId product = build.binary("Mul", lowering.operand(0), lowering.operand(1));
  const ValueId sum = build.reduce_sum(product, std::move(axes), true);
  lowering.result(0, build.binary("Sub", product, build.binary("Mul", lowering.operand(1), sum),
                                  lowering.name(0)));
}

// dY - exp(Y) sum(dY) over `axes`.
void lower_log_softmax_grad_over(const Lowering& lowering, std::vector<int64_t> axes) {
  Builder& build = lowering.build();
  const ValueId sum = build.reduce_sum(lowering.operand(0), std::move(axes), true);
  const ValueId spread = build.binary("Mul", build.unary("Exp", lowering.operand(1)), sum);
  lowering.result(0, build.binary("Sub", lowering.operand(0), spread, lowering.name(0)));
}

std::vector<int64_t> one_axis(const Lowering& lowering) {
  return {lowering.node.attributes.get_int("axis", -1)};
}

// Before opset 13 softmax normalised over all axes from `axis` on.
std::vector<int64_t> trailing_axes(const Lowering& lowering) {
  const size_t rank = lowering.result_type(0).rank();
  std::vector<int64_t> axes;
  for (size_t k = ir::normalize_axis(lowering.node.attributes.get_int("axis", 1), rank); k < rank;
       ++k) {
    axes.push_back(static_cast<int64_t>(k));
  }
  return axes;
}

void lower_scale(const Lowering& lowering) {
  Builder& build = lowering.build();
  const bool down = lowering.node.attributes.get_int("scale_down", 0) != 0;
  const ValueId scale = build.cast(lowering.operand(1), build.dtype(lowering.operand(0)));
  lowering.result(0, build.binary(down ? "Div" : "Mul", lowering.operand(0),
                                  build.reshape(scale, {}), lowering.name(0)));
}

}  // namespace

const std::vector<LoweringRow>& activation_lowerings() {
  using L = const Lowering&;
  static const std::vector<LoweringRow> kRows = {
      {"Gelu", [](L l) { lower_gelu(l, operand(l, 0), "none"); }},
      {"BiasGelu", [](L l) { lower_gelu(l, biased(l, 0, 1), "none"); }},
      {"FastGelu", [](L l) { lower_gelu(l, biased(l, 0, 1), "tanh"); }},
      {"QuickGelu", lower_quick_gelu},
      {"GeluGrad", [](L l) { multiply_gradient(l, gelu_slope(operand(l, 1))); }},
      {"BiasGeluGrad_dX", [](L l) { multiply_gradient(l, gelu_slope(biased(l, 1, 2))); }},
      {"FastGeluGrad", [](L l) { multiply_gradient(l, tanh_gelu_slope(operand(l, 1))); }},
      {"BiasFastGeluGrad_dX", [](L l) { multiply_gradient(l, tanh_gelu_slope(biased(l, 1, 2))); }},
      {"QuickGeluGrad", lower_quick_gelu_grad},
      {"ReluGrad", lower_relu_grad},
      {"SigmoidGrad", [](L l) { multiply_gradient(l, operand(l, 1) * (1.0 - operand(l, 1))); }},
      {"TanhGrad", [](L l) { multiply_gradient(l, 1.0 - operand(l, 1) * operand(l, 1)); }},
      {"SoftmaxGrad", [](L l) { lower_softmax_grad_over(l, trailing_axes(l)); }},
      {"SoftmaxGrad_13", [](L l) { lower_softmax_grad_over(l, one_axis(l)); }},
      {"LogSoftmaxGrad", [](L l) { lower_log_softmax_grad_over(l, trailing_axes(l)); }},
      {"LogSoftmaxGrad_13", [](L l) { lower_log_softmax_grad_over(l, one_axis(l)); }},
      {"Scale", lower_scale},
  };
  return kRows;
}

}  // namespace autosp::transforms::microsoft

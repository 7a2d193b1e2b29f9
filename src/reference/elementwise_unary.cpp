// Elementwise operators of one operand. Every kernel may write over its operand.
#include <algorithm>
#include <cmath>
#include <numbers>
#include <type_traits>

#include "reference/call.h"

namespace autosp::reference {

namespace {

// y[i] = fn(x[i]), with fn in the type arithmetic is done in.
template <typename Types, typename F>
void map(const Call& call, Types types, F&& fn) {
  visit(types, call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    const T* x = data<T>(call.operands[0]);
    T* y = data<T>(call.results[0]);
    const int64_t count = size_of(call.results[0]);
    for (int64_t i = 0; i < count; ++i) {
      y[i] = static_cast<T>(fn(static_cast<Compute<T>>(x[i])));
    }
  });
}

template <auto fn, typename Types = FloatTypes>
void unary(const Call& call) {
  map(call, Types{}, fn);
}

// A predicate: bool results.
template <auto fn, typename Types = FloatTypes>
void test(const Call& call) {
  visit(Types{}, call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    const T* x = data<T>(call.operands[0]);
    bool* y = data<bool>(call.results[0]);
    const int64_t count = size_of(call.results[0]);
    for (int64_t i = 0; i < count; ++i) y[i] = fn(static_cast<Compute<T>>(x[i]));
  });
}

template <typename T>
T sign(T x) {
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(x)) return x;
  }
  return static_cast<T>(x > T{0}) - static_cast<T>(x < T{0});
}

// 1 / (1 + exp(-x)), without overflow for x far below zero.
template <typename T>
T sigmoid(T x) {
  if (x >= 0) return T{1} / (T{1} + std::exp(-x));
  const T e = std::exp(x);
  return e / (T{1} + e);
}

// log(1 + exp(x)), without overflow for x far above zero.
template <typename T>
T softplus(T x) {
  return std::max(x, T{0}) + std::log1p(std::exp(-std::abs(x)));
}

void gelu(const Call& call) {
  if (call.node.attributes.get_string("approximate", "none") == "tanh") {
    map(call, FloatTypes{}, []<typename T>(T x) {
      constexpr T scale = std::numbers::sqrt2_v<T> * std::numbers::inv_sqrtpi_v<T>;  // sqrt(2/pi)
      return T(0.5) * x * (T{1} + std::tanh(scale * (x + T(0.044715) * x * x * x)));
    });
  } else {
    map(call, FloatTypes{}, []<typename T>(T x) {
      return T(0.5) * x * (T{1} + std::erf(x / std::numbers::sqrt2_v<T>));
    });
  }
}

float attribute(const Call& call, const char* name, float otherwise) {
  return call.node.attributes.get_float(name, otherwise);
}

void leaky_relu(const Call& call) {
  const float alpha = attribute(call, "alpha", 0.01F);
  map(call, FloatTypes{}, [alpha](auto x) { return x < 0 ? decltype(x)(alpha) * x : x; });
}

void elu(const Call& call) {
  const float alpha = attribute(call, "alpha", 1.0F);
  map(call, FloatTypes{},
      [alpha](auto x) { return x < 0 ? decltype(x)(alpha) * std::expm1(x) : x; });
}

void celu(const Call& call) {
  const float alpha = attribute(call, "alpha", 1.0F);
  map(call, FloatTypes{}, [alpha]<typename T>(T x) {
    return std::max(T{0}, x) + std::min(T{0}, T(alpha) * std::expm1(x / T(alpha)));
  });
}

void selu(const Call& call) {
  const float alpha = attribute(call, "alpha", 1.67326319217681884765625F);
  const float gamma = attribute(call, "gamma", 1.05070102214813232421875F);
  map(call, FloatTypes{}, [alpha, gamma]<typename T>(T x) {
    return T(gamma) * (x > 0 ? x : T(alpha) * std::expm1(x));
  });
}

void hard_sigmoid(const Call& call) {
  const float alpha = attribute(call, "alpha", 0.2F);
  const float beta = attribute(call, "beta", 0.5F);
  map(call, FloatTypes{},
      [alpha, beta]<typename T>(T x) { return std::clamp(T(alpha) * x + T(beta), T{0}, T{1}); });
}

void is_inf(const Call& call) {
  const bool positive = call.node.attributes.get_int("detect_positive", 1) != 0;
  const bool negative = call.node.attributes.get_int("detect_negative", 1) != 0;
  visit(FloatTypes{}, call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    const T* x = data<T>(call.operands[0]);
    bool* y = data<bool>(call.results[0]);
    const int64_t count = size_of(call.results[0]);
    for (int64_t i = 0; i < count; ++i) {
      const Compute<T> value = x[i];
      y[i] = std::isinf(value) && (value > 0 ? positive : negative);
    }
  });
}

// The least integer is its own negation.
template <typename T>
T negated(T x) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(x));
  } else {
    return -x;
  }
}

using enum Aliasing;

constexpr KernelRow kRows[] = {
    {"Neg", unary<[](auto x) { return negated(x); }, NumericTypes>, kElementwise},
    {"Abs",
     unary<[](auto x) { return x < decltype(x){0} ? negated(x) : x + decltype(x){0}; },
           NumericTypes>,
     kElementwise},
    {"Sign", unary<[](auto x) { return sign(x); }, NumericTypes>, kElementwise},
    {"Exp", unary<[](auto x) { return std::exp(x); }>, kElementwise},
    {"Log", unary<[](auto x) { return std::log(x); }>, kElementwise},
    {"Sqrt", unary<[](auto x) { return std::sqrt(x); }>, kElementwise},
    {"Reciprocal", unary<[](auto x) { return decltype(x){1} / x; }>, kElementwise},
    {"Floor", unary<[](auto x) { return std::floor(x); }>, kElementwise},
    {"Ceil", unary<[](auto x) { return std::ceil(x); }>, kElementwise},
    {"Round", unary<[](auto x) { return std::nearbyint(x); }>, kElementwise},  // half to even
    {"Sin", unary<[](auto x) { return std::sin(x); }>, kElementwise},
    {"Cos", unary<[](auto x) { return std::cos(x); }>, kElementwise},
    {"Tan", unary<[](auto x) { return std::tan(x); }>, kElementwise},
    {"Atan", unary<[](auto x) { return std::atan(x); }>, kElementwise},
    {"Asin", unary<[](auto x) { return std::asin(x); }>, kElementwise},
    {"Acos", unary<[](auto x) { return std::acos(x); }>, kElementwise},
    {"Sinh", unary<[](auto x) { return std::sinh(x); }>, kElementwise},
    {"Cosh", unary<[](auto x) { return std::cosh(x); }>, kElementwise},
    {"Asinh", unary<[](auto x) { return std::asinh(x); }>, kElementwise},
    {"Acosh", unary<[](auto x) { return std::acosh(x); }>, kElementwise},
    {"Atanh", unary<[](auto x) { return std::atanh(x); }>, kElementwise},
    {"Tanh", unary<[](auto x) { return std::tanh(x); }>, kElementwise},
    {"Erf", unary<[](auto x) { return std::erf(x); }>, kElementwise},
    {"Sigmoid", unary<[](auto x) { return sigmoid(x); }>, kElementwise},
    {"Softplus", unary<[](auto x) { return softplus(x); }>, kElementwise},
    {"Softsign", unary<[](auto x) { return x / (decltype(x){1} + std::abs(x)); }>, kElementwise},
    {"Mish", unary<[](auto x) { return x * std::tanh(softplus(x)); }>, kElementwise},
    {"HardSwish",
     unary<[]<typename T>(T x) { return x * std::clamp(x / T{6} + T(0.5), T{0}, T{1}); }>,
     kElementwise},
    {"Relu", unary<[](auto x) { return x < decltype(x){0} ? decltype(x){0} : x; }, NumericTypes>,
     kElementwise},
    {"Gelu", gelu, kElementwise},
    {"LeakyRelu", leaky_relu, kElementwise},
    {"Elu", elu, kElementwise},
    {"Celu", celu, kElementwise},
    {"Selu", selu, kElementwise},
    {"HardSigmoid", hard_sigmoid, kElementwise},
    {"BitwiseNot", unary<[](auto x) { return ~x; }, IntegerTypes>, kElementwise},
    {"Not", test<[](bool x) { return !x; }, BoolType>, kElementwise},
    {"IsNaN", test<[](auto x) { return std::isnan(x); }>, kElementwise},
    {"IsInf", is_inf, kElementwise},
};

}  // namespace

std::span<const KernelRow> unary_kernels() { return kRows; }

}  // namespace autosp::reference

// The loops of loops.h, for the compiler to vectorize. Included by one source file per instruction
// set; everything has internal linkage.
#pragma once

#include <cmath>

#include "executor/kernels/chain/loops.h"
#include "executor/kernels/simd.h"

namespace autosp::executor::chain {
namespace {

template <typename F>
AUTOSP_INLINE void each(const float* x, float* y, int64_t count, F&& f) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) y[i] = f(x[i]);
}

void unary(Op op, const float* x, float* y, int64_t count) {
  switch (op) {
    case Op::kNeg:
      return each(x, y, count, [](float v) { return -v; });
    case Op::kAbs:
      return each(x, y, count, [](float v) { return std::fabs(v); });
    case Op::kExp:
      return each(x, y, count, [](float v) { return simd_exp(v); });
    case Op::kLog:
      return each(x, y, count, [](float v) { return std::log(v); });
    case Op::kSqrt:
      return each(x, y, count, [](float v) { return std::sqrt(v); });
    case Op::kReciprocal:
      return each(x, y, count, [](float v) { return 1.0F / v; });
    case Op::kSigmoid:
      return each(x, y, count, [](float v) { return simd_sigmoid(v); });
    case Op::kTanh:
      return each(x, y, count, [](float v) { return simd_tanh(v); });
    case Op::kErf:
      return each(x, y, count, [](float v) { return std::erf(v); });
    case Op::kRelu:
      return each(x, y, count, [](float v) { return v < 0.0F ? 0.0F : v; });
    case Op::kSin:
      return each(x, y, count, [](float v) { return std::sin(v); });
    case Op::kCos:
      return each(x, y, count, [](float v) { return std::cos(v); });
    default:
      return each(x, y, count, [](float v) { return v; });
  }
}

template <typename F>
AUTOSP_INLINE void pairs(Elements<float> a, Elements<float> b, float* y, int64_t count, F&& f) {
  const float* x = a.data;
  const float* z = b.data;
  if (a.step == 1 && b.step == 1) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) y[i] = f(x[i], z[i]);
  } else if (a.step == 1) {
    const float second = *z;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) y[i] = f(x[i], second);
  } else if (b.step == 1) {
    const float first = *x;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) y[i] = f(first, z[i]);
  } else {
    const float both = f(*x, *z);
    for (int64_t i = 0; i < count; ++i) y[i] = both;
  }
}

void power(Elements<float> a, Elements<float> b, float* y, int64_t count) {
  if (b.step == 0 && *b.data == 2.0F) {
    return pairs(a, b, y, count, [](float v, float) { return v * v; });
  }
  if (b.step == 0 && *b.data == 3.0F) {
    return pairs(a, b, y, count, [](float v, float) { return v * v * v; });
  }
  pairs(a, b, y, count, [](float v, float w) { return std::pow(v, w); });
}

void binary(Op op, Elements<float> a, Elements<float> b, float* y, int64_t count) {
  switch (op) {
    case Op::kAdd:
      return pairs(a, b, y, count, [](float v, float w) { return v + w; });
    case Op::kSub:
      return pairs(a, b, y, count, [](float v, float w) { return v - w; });
    case Op::kMul:
      return pairs(a, b, y, count, [](float v, float w) { return v * w; });
    case Op::kDiv:
      return pairs(a, b, y, count, [](float v, float w) { return v / w; });
    case Op::kMax:  // of NaN, NaN
      return pairs(a, b, y, count, [](float v, float w) { return v > w || v != v ? v : w; });
    case Op::kMin:
      return pairs(a, b, y, count, [](float v, float w) { return v < w || v != v ? v : w; });
    default:
      return power(a, b, y, count);
  }
}

void where(Elements<bool> condition, Elements<float> a, Elements<float> b, float* y,
           int64_t count) {
  if (condition.step == 0) {
    const Elements<float>& chosen = *condition.data ? a : b;
    return pairs(chosen, chosen, y, count, [](float v, float) { return v; });
  }
  const bool* c = condition.data;
  if (a.step == 1 && b.step == 1) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) y[i] = c[i] ? a.data[i] : b.data[i];
  } else if (a.step == 1) {
    const float other = *b.data;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) y[i] = c[i] ? a.data[i] : other;
  } else if (b.step == 1) {
    const float then = *a.data;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) y[i] = c[i] ? then : b.data[i];
  } else {
    const float then = *a.data;
    const float other = *b.data;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) y[i] = c[i] ? then : other;
  }
}

// In double, in lanes of its own: the order does not depend on the instruction set.
double row_sum(const float* x, int64_t count) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] += static_cast<double>(x[i + k]);
  }
  double result = 0;
  for (; i < count; ++i) result += static_cast<double>(x[i]);
  for (double lane : lanes) result += lane;
  return result;
}

float sum(const float* x, int64_t count) { return static_cast<float>(row_sum(x, count)); }

// NaN when an element is.
float maximum(const float* x, int64_t count) {
  float lanes[kLanes];
  for (float& lane : lanes) lane = x[0];
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) {
      lanes[k] = x[i + k] > lanes[k] || x[i + k] != x[i + k] ? x[i + k] : lanes[k];
    }
  }
  float result = lanes[0];
  const auto include = [&](float v) { result = v > result || v != v ? v : result; };
  for (float lane : lanes) include(lane);
  for (; i < count; ++i) include(x[i]);
  return result;
}

void softmax(const float* x, float* y, int64_t count, bool log) {
  const float max = maximum(x, count);
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) {
      const float e = simd_exp(x[i + k] - max);
      if (!log) y[i + k] = e;
      lanes[k] += static_cast<double>(e);
    }
  }
  double total = 0;
  for (; i < count; ++i) {
    const float e = simd_exp(x[i] - max);
    if (!log) y[i] = e;
    total += static_cast<double>(e);
  }
  for (double lane : lanes) total += lane;
  if (log) {
    // In two subtractions, as max + log(sum) would lose the digits of a large max.
    const auto logarithm = static_cast<float>(std::log(total));
    each(x, y, count, [=](float v) { return (v - max) - logarithm; });
  } else {
    const auto inverse = static_cast<float>(1 / total);
    each(y, y, count, [=](float v) { return v * inverse; });
  }
}

constexpr Loops kLoops = {unary, binary, where, sum, maximum, softmax};

}  // namespace
}  // namespace autosp::executor::chain

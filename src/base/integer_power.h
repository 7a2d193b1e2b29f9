// Powers with whole exponents, of the same bits on every processor and device.
#pragma once

#include <cstdint>

namespace autosp {

// base^exponent for exponents from 0 on. Products alone, each rounded as IEEE 754 says, which
// std::pow is not held to; the relative error is at most `exponent` roundings.
constexpr double integer_power(double base, int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent /= 2) {
    if (exponent % 2 == 1) result *= base;
    base *= base;
  }
  return result;
}

}  // namespace autosp

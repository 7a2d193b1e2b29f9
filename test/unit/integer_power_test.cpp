#include "base/integer_power.h"

#include <gtest/gtest.h>

#include <cmath>

namespace autosp {
namespace {

TEST(IntegerPower, IsThePowerToItsRoundings) {
  for (const double base : {0.0, 0.5, 0.9, 0.999, 0.99999, 1.0, 1.5}) {
    for (const int64_t exponent : {0, 1, 2, 3, 7, 8, 100, 1000, 1001}) {
      const double want = std::pow(base, static_cast<double>(exponent));
      const double roundings = static_cast<double>(exponent) * 0x1p-53;
      EXPECT_NEAR(integer_power(base, exponent), want, want * (roundings + 0x1p-52))
          << base << "^" << exponent;
    }
  }
}

TEST(IntegerPower, VanishesAfterManySteps) { EXPECT_EQ(integer_power(0.9, int64_t{1} << 62), 0); }

}  // namespace
}  // namespace autosp

// Sums, maxima and the like of what the threads of a block hold (launch_rows).
#pragma once

#include "cuda/kernels/launch.h"

namespace autosp::kernels {

inline constexpr int kTreePhases = 7;
static_assert(1 << kTreePhases == kLanes);

// Phase `level` of kTreePhases: afterwards values[0] is all of them combined, in a fixed order.
template <typename T, typename F>
AUTOSP_DEVICE void combine_tree(T* values, int lane, int level, F combine) {
  const int half = kLanes >> (level + 1);
  if (lane < half) values[lane] = combine(values[lane], values[lane + half]);
}

struct Add {
  template <typename T>
  AUTOSP_DEVICE T operator()(T x, T y) const {
    return x + y;
  }
};
struct Larger {
  template <typename T>
  AUTOSP_DEVICE T operator()(T x, T y) const {
    return x > y || x != x ? x : y;
  }
};

// The largest of a row's terms, and the sum of exp(term - that), in kPhases phases. The sum is of
// use where the largest is finite.
template <typename A>
struct SumOfExponentials {
  static constexpr int kMax = 1 + kTreePhases;  // the phase in which the maximum is kept
  static constexpr int kPhases = kMax + 2 + kTreePhases;

  A value[kLanes];  // afterwards, value[0] is the sum
  A max;

  // `load` gives term k of `count`.
  template <typename Load>
  AUTOSP_DEVICE void step(int lane, int phase, int64_t count, Load load) {
    if (phase == 0) {
      A largest = -INFINITY;
      for (int64_t k = lane; k < count; k += kLanes) largest = Larger()(largest, load(k));
      value[lane] = largest;
    } else if (phase < kMax) {
      combine_tree(value, lane, phase - 1, Larger());
    } else if (phase == kMax) {
      if (lane == 0) max = value[0];
    } else if (phase == kMax + 1) {
      A sum = 0;
      for (int64_t k = lane; k < count; k += kLanes) sum += exp(load(k) - max);
      value[lane] = sum;
    } else {
      combine_tree(value, lane, phase - kMax - 2, Add());
    }
  }
};

// What sums are kept in.
template <typename T>
using Total =
    std::conditional_t<kIsHalf<T>, float, std::conditional_t<std::is_integral_v<T>, int64_t, T>>;

}  // namespace autosp::kernels

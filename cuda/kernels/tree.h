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

// What sums are kept in.
template <typename T>
using Total =
    std::conditional_t<kIsHalf<T>, float, std::conditional_t<std::is_integral_v<T>, int64_t, T>>;

}  // namespace autosp::kernels

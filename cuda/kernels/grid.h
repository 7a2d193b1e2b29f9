// Where the elements of several arrays lie that are walked over one index space.
#pragma once

#include <array>

#include "cuda/kernels/elements.h"
#include "ir/type.h"
#include "reference/strided_loop.h"

namespace autosp::kernels {

using reference::broadcast_strides;
using reference::row_major_strides;
using reference::Strides;

// Axes that all N arrays walk as one are merged; those of one entry are left out.
template <int N>
struct Grid {
  static constexpr int kAxes = 8;
  int64_t count = 1;
  int axes = 0;
  int64_t extent[kAxes] = {};
  int64_t stride[N][kAxes] = {};

  Grid() = default;
  Grid(const ir::Shape& shape, const std::array<Strides, N>& strides) {
    for (size_t k = 0; k < shape.size(); ++k) {
      count *= shape[k];
      if (shape[k] == 1) continue;
      bool merges = axes > 0;
      for (int n = 0; n < N && merges; ++n) {
        merges = stride[n][axes - 1] == strides[static_cast<size_t>(n)][k] * shape[k];
      }
      if (!merges) {
        AUTOSP_CHECK(axes < kAxes, "an index space of more than {} axes", kAxes);
        ++axes;
      }
      extent[axes - 1] = merges ? extent[axes - 1] * shape[k] : shape[k];
      for (int n = 0; n < N; ++n) stride[n][axes - 1] = strides[static_cast<size_t>(n)][k];
    }
  }

  struct Offsets {
    int64_t at[N];
  };

  // Of element `index`, counted row-major.
  AUTOSP_DEVICE Offsets offsets(int64_t index) const {
    // Divisions of 32 bits are several times as fast.
    return count <= 0xFFFFFFFFLL ? walk(static_cast<uint32_t>(index))
                                 : walk(static_cast<uint64_t>(index));
  }

 private:
  template <typename Index>
  AUTOSP_DEVICE Offsets walk(Index index) const {
    Offsets result = {};
    for (int k = axes; k-- > 0;) {
      const auto size = static_cast<Index>(extent[k]);
      const Index next = k == 0 ? 0 : index / size;
      const auto within = static_cast<int64_t>(index - next * size);
      for (int n = 0; n < N; ++n) result.at[n] += within * stride[n][k];
      index = next;
    }
    return result;
  }
};

}  // namespace autosp::kernels

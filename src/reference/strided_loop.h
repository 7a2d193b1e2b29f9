// One loop nest for every kernel that walks several arrays over one index space.
//
// An array takes part through its strides: row-major, permuted (Transpose), zero along an axis
// (broadcast, reduction), or multiples (Slice with steps). Axes that every array walks as one are
// merged, so that a kernel's inner loop is as long as the layouts allow and needs no odometer.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "ir/type.h"

namespace autosp::reference {

using Strides = std::vector<int64_t>;  // in elements, one per axis

inline Strides row_major_strides(const ir::Shape& shape) {
  Strides strides(shape.size(), 1);
  for (size_t k = shape.size(); k-- > 1;) strides[k - 1] = strides[k] * shape[k];
  return strides;
}

// Strides that read an array of shape `from` as if it were broadcast to `to`.
inline Strides broadcast_strides(const ir::Shape& from, const ir::Shape& to) {
  const Strides own = row_major_strides(from);
  Strides strides(to.size(), 0);
  const size_t lead = to.size() - from.size();
  for (size_t k = 0; k < from.size(); ++k) strides[lead + k] = from[k] == 1 ? 0 : own[k];
  return strides;
}

template <size_t N>
class StridedLoop {
 public:
  using Offsets = std::array<int64_t, N>;  // one position per array, in elements

  StridedLoop(const ir::Shape& extents, const std::array<Strides, N>& strides) {
    std::vector<Axis> axes;
    for (size_t k = 0; k < extents.size(); ++k) {
      if (extents[k] == 0) empty_ = true;
      if (extents[k] == 1) continue;
      Axis axis{extents[k], {}};
      for (size_t n = 0; n < N; ++n) axis.strides[n] = strides[n][k];
      if (!axes.empty() && mergeable(axes.back(), axis)) {
        axis.extent *= axes.back().extent;
        axes.back() = axis;
      } else {
        axes.push_back(axis);
      }
    }
    if (!axes.empty()) {
      inner_ = axes.back();
      axes.pop_back();
    }
    outer_ = std::move(axes);
  }

  // The innermost axis: its extent, and each array's step along it.
  int64_t row_extent() const { return inner_.extent; }
  const Offsets& row_strides() const { return inner_.strides; }

  // Calls f(offsets) with each array's position at the start of every row.
  template <typename F>
  void for_each_row(F&& f) const {
    if (empty_) return;
    Offsets offsets{};
    std::vector<int64_t> index(outer_.size(), 0);
    while (true) {
      f(static_cast<const Offsets&>(offsets));
      size_t k = outer_.size();
      for (; k > 0; --k) {
        const Axis& axis = outer_[k - 1];
        if (++index[k - 1] < axis.extent) {
          for (size_t n = 0; n < N; ++n) offsets[n] += axis.strides[n];
          break;
        }
        index[k - 1] = 0;
        for (size_t n = 0; n < N; ++n) offsets[n] -= axis.strides[n] * (axis.extent - 1);
      }
      if (k == 0) return;
    }
  }

  // Calls f(offsets) for every element.
  template <typename F>
  void for_each(F&& f) const {
    for_each_row([&](Offsets offsets) {
      for (int64_t i = 0; i < inner_.extent; ++i) {
        f(static_cast<const Offsets&>(offsets));
        for (size_t n = 0; n < N; ++n) offsets[n] += inner_.strides[n];
      }
    });
  }

 private:
  struct Axis {
    int64_t extent = 1;
    Offsets strides{};
  };

  static bool mergeable(const Axis& major, const Axis& minor) {
    for (size_t n = 0; n < N; ++n) {
      if (major.strides[n] != minor.strides[n] * minor.extent) return false;
    }
    return true;
  }

  std::vector<Axis> outer_;  // major to minor
  Axis inner_;
  bool empty_ = false;
};

}  // namespace autosp::reference

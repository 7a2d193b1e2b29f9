// The window of a convolution, as the attributes of Conv and ConvTranspose give it.
#pragma once

#include <algorithm>

#include "reference/call.h"

namespace autosp::reference {

struct Window {
  std::vector<int64_t> strides;
  std::vector<int64_t> dilations;
  std::vector<int64_t> before;  // pads in front; those behind follow from the result's extents

  // auto_pad: what is padded along spatial axis k in all, its odd half behind for SAME_UPPER, else
  // in front.
  void pad_automatically(size_t k, int64_t total, bool upper) {
    total = std::max<int64_t>(total, 0);
    before[k] = upper ? total / 2 : total - total / 2;
  }
};

// Strides and dilations are 1, and pads 0, unless they are given.
inline Window window_of(const ir::Attributes& attributes, size_t spatial) {
  Window window{attributes.get_ints("strides"), attributes.get_ints("dilations"),
                attributes.get_ints("pads")};
  if (window.strides.empty()) window.strides.assign(spatial, 1);
  if (window.dilations.empty()) window.dilations.assign(spatial, 1);
  window.before.resize(spatial, 0);
  return window;
}

}  // namespace autosp::reference

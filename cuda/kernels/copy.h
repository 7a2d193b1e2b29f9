// Moving elements from one layout to another, in vectors of up to 16 bytes where rows allow it.
#pragma once

#include "cuda/kernels/grid.h"
#include "cuda/kernels/launch.h"

namespace autosp::kernels {

// to[...] = from[...] over an index space; strides and offsets in elements.
struct StridedCopy {
  ir::Shape shape;
  size_t element_size = 1;
  void* to = nullptr;
  Strides to_strides;
  int64_t to_offset = 0;
  const void* from = nullptr;
  Strides from_strides;
  int64_t from_offset = 0;
};

void copy(const Queue& queue, StridedCopy copy);

// Bytes that lie alike.
void copy_bytes(const Queue& queue, void* to, const void* from, int64_t bytes);

}  // namespace autosp::kernels

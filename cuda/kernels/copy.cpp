#include "cuda/kernels/copy.h"

#include <algorithm>

namespace autosp::kernels {

namespace {

template <typename T>
struct Copy {
  T* to;
  const T* from;
  Grid<2> grid;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    const auto at = grid.offsets(i);
    to[at.at[0]] = from[at.at[1]];
  }
};

// Whether `by` elements can be moved as one: the last axis is made of such, and all else begins at
// multiples of them.
bool groups(const StridedCopy& c, int64_t by) {
  if (c.shape.empty() || c.shape.back() % by != 0) return false;
  if (c.to_strides.back() != 1 || c.from_strides.back() != 1) return false;
  const size_t bytes = c.element_size * static_cast<size_t>(by);
  const auto starts = [&](const void* data, int64_t offset) {
    return (reinterpret_cast<uintptr_t>(data) + static_cast<size_t>(offset) * c.element_size) %
               bytes ==
           0;
  };
  if (!starts(c.to, c.to_offset) || !starts(c.from, c.from_offset)) return false;
  for (size_t k = 0; k + 1 < c.shape.size(); ++k) {
    if (c.shape[k] == 1) continue;
    if (c.to_strides[k] % by != 0 || c.from_strides[k] % by != 0) return false;
  }
  return true;
}

void group(StridedCopy& c, int64_t by) {
  c.shape.back() /= by;
  c.element_size *= static_cast<size_t>(by);
  c.to = static_cast<std::byte*>(c.to);
  for (size_t k = 0; k + 1 < c.shape.size(); ++k) {
    c.to_strides[k] /= by;
    c.from_strides[k] /= by;
  }
}

}  // namespace

void copy(const Queue& queue, StridedCopy c) {
  if (ir::num_elements(c.shape) == 0) return;
  // Trailing axes of one entry would hide the row.
  while (!c.shape.empty() && c.shape.back() == 1) {
    c.shape.pop_back();
    c.to_strides.pop_back();
    c.from_strides.pop_back();
  }
  const auto bytes = static_cast<int64_t>(c.element_size);
  auto* to = static_cast<std::byte*>(c.to) + c.to_offset * bytes;
  const auto* from = static_cast<const std::byte*>(c.from) + c.from_offset * bytes;
  for (int64_t by = 16 / bytes; by > 1; by /= 2) {
    if (!groups(c, by)) continue;
    group(c, by);
    break;
  }
  const Grid<2> grid(c.shape, {c.to_strides, c.from_strides});
  visit_width(c.element_size, [&]<typename T>(std::type_identity<T>) {
    launch(queue, grid.count,
           Copy<T>{reinterpret_cast<T*>(to), reinterpret_cast<const T*>(from), grid});
  });
}

void copy_bytes(const Queue& queue, void* to, const void* from, int64_t bytes) {
  if (to == from) return;
  copy(queue, {.shape = {bytes},
               .element_size = 1,
               .to = to,
               .to_strides = {1},
               .from = from,
               .from_strides = {1}});
}

}  // namespace autosp::kernels

// Moving and summing boxes of row-major tensors: what transports do once they have the bytes.
#pragma once

#include <cstddef>
#include <span>

#include "executor/communicator.h"

namespace autosp::executor {

// The box of the whole tensor.
Box whole_box(const ir::Shape& shape);
// Consecutive slabs along `axis` with the given extents.
std::vector<Box> slabs(const ir::Shape& shape, size_t axis, const std::vector<int64_t>& sizes);

// True when the box lies inside a tensor of this shape.
bool fits(const Box& box, const ir::Shape& shape);

// Elements that follow each other in a row-major tensor.
struct ElementRange {
  int64_t begin = 0;
  int64_t count = 0;
};
// Those of a box, in ascending order. What is less than `gap` elements apart is one, with what lies
// between; `gap` is at least 1.
std::vector<ElementRange> ranges_of(const Box& box, const ir::Shape& shape, int64_t gap);

// Copies box `from` of x to box `to` of y, element by element in row-major order of each; the boxes
// have equal element counts.
void copy_box(size_t element_size, const ConstBuffer& x, const Box& from, const Buffer& y,
              const Box& to);
// Ways to copy a row that this machine has; large boxes are copied by the last, past the caches.
struct RowCopy {
  const char* name;
  void (*copy)(std::byte* out, const std::byte* in, size_t bytes);
};
std::span<const RowCopy> row_copies();

// The same to and from consecutive bytes.
void pack_box(size_t element_size, const ConstBuffer& x, const Box& from, std::byte* bytes);
void unpack_box(size_t element_size, const std::byte* bytes, const Buffer& y, const Box& to);

// out[i] = terms[0][i] + terms[1][i] + ..., in that order; 16-bit floats are summed as float and
// rounded once. `out` may be one of the terms.
void sum_in_order(ir::DataType dtype, std::span<const std::byte* const> terms, int64_t count,
                  std::byte* out);

// The same for one box of tensors of shape `shape`; the result is the box, row-major.
void sum_boxes(ir::DataType dtype, std::span<const std::byte* const> terms, const ir::Shape& shape,
               const Box& box, std::byte* out);

}  // namespace autosp::executor

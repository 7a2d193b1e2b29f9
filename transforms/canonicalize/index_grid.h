// Index tensors that address a box.
//
// GatherND and ScatterND address one element per row of their index. When each column of the index
// counts through a contiguous range along its own axes, the rows together address a box of the
// data, and reading or writing it is a Slice or a Pad, up to views:
//
//   columns (b, s) over rows [B, 1, 1, S]:  b along axis 0, s along axis 3  ->  data[0:B, 0:S]
#pragma once

#include <optional>
#include <vector>

#include "ir/builder.h"
#include "transforms/canonicalize/affine.h"

namespace autosp::transforms {

struct IndexGrid {
  ir::Shape rows;  // shape of the index without its last axis
  // Per column: the box [begin, begin + extent) of the indexed dimension, and the row axes that
  // count through it, major to minor (none for a fixed index).
  struct Column {
    int64_t begin = 0;
    int64_t extent = 1;
    std::vector<size_t> axes;
  };
  std::vector<Column> columns;
  std::vector<size_t> repeated;  // row axes of extent above 1 that no column depends on
};

// The grid that index columns form over dimensions of these extents, or nullopt when they do not
// address a box, each element through one combination of the counting axes.
std::optional<IndexGrid> find_index_grid(const ir::Shape& rows, const std::vector<Affine>& columns,
                                         const ir::Shape& indexed);

// The first entry of the range that the index of a GatherElements or ScatterElements along `axis`
// counts through, one entry per step along that axis and the same in every row; nullopt when it
// does anything else. `extent` is that of the data along the axis.
std::optional<int64_t> find_index_range(const ir::Shape& rows, const Affine& index, size_t axis,
                                        int64_t extent);

// data[grid]: `data` has dimensions prefix..., indexed..., rest...; the result has prefix...,
// rows..., rest... .
ValueId gather_grid(ir::Builder& build, ValueId data, const IndexGrid& grid, size_t num_prefix,
                    const std::string& name);

// Zeros of shape `shape` with `updates` (rows..., rest...) added at the grid.
ValueId scatter_grid(ir::Builder& build, ValueId updates, const IndexGrid& grid,
                     const ir::Shape& shape, const std::string& name);

// Pad, moved in front of a Transpose that computes its operand, so that the transposes around a
// padded window meet and cancel.
ValueId pad_before_transpose(ir::Builder& build, ValueId x, const std::vector<int64_t>& before,
                             const std::vector<int64_t>& after, const std::string& name);

}  // namespace autosp::transforms

#include "transforms/canonicalize/index_grid.h"

#include <algorithm>
#include <numeric>

namespace autosp::transforms {

using ir::Builder;
using ir::Node;
using ir::Shape;

namespace {

// The row axes that count through a column's range, major to minor; nullopt when they do not count
// contiguously.
std::optional<std::vector<size_t>> counting_axes(const Affine& column) {
  std::vector<size_t> axes;
  for (size_t k = 0; k < column.shape.size(); ++k) {
    if (column.strides[k] != 0) axes.push_back(k);
  }
  std::ranges::sort(axes, std::greater{}, [&](size_t k) { return column.strides[k]; });
  int64_t expected = 1;
  for (size_t k = axes.size(); k-- > 0;) {
    if (column.strides[axes[k]] != expected) return std::nullopt;
    expected *= column.shape[axes[k]];
  }
  return axes;
}

std::vector<int64_t> iota(size_t count) {
  std::vector<int64_t> result(count);
  std::iota(result.begin(), result.end(), 0);
  return result;
}

void append_range(std::vector<int64_t>& axes, size_t begin, size_t end) {
  for (size_t k = begin; k < end; ++k) axes.push_back(static_cast<int64_t>(k));
}

// The row axes in the order in which the columns count through them.
std::vector<size_t> column_order(const IndexGrid& grid) {
  std::vector<size_t> order;
  for (const auto& column : grid.columns) {
    order.insert(order.end(), column.axes.begin(), column.axes.end());
  }
  return order;
}

ValueId transpose_unless_sorted(Builder& build, ValueId x, std::vector<int64_t> permutation) {
  return std::ranges::is_sorted(permutation) ? x : build.transpose(x, std::move(permutation));
}

}  // namespace

std::optional<IndexGrid> find_index_grid(const Shape& rows, const std::vector<Affine>& columns,
                                         const Shape& indexed) {
  IndexGrid grid{.rows = rows};
  std::vector<bool> used(rows.size(), false);
  for (size_t c = 0; c < columns.size(); ++c) {
    const auto axes = counting_axes(columns[c]);
    if (!axes) return std::nullopt;
    IndexGrid::Column column{.begin = columns[c].least(), .axes = *axes};
    for (size_t axis : *axes) {
      if (used[axis]) return std::nullopt;  // a diagonal
      used[axis] = true;
      column.extent *= rows[axis];
    }
    if (columns[c].greatest() < 0) column.begin += indexed[c];
    if (column.begin < 0 || column.begin + column.extent > indexed[c]) return std::nullopt;
    grid.columns.push_back(std::move(column));
  }
  for (size_t k = 0; k < rows.size(); ++k) {
    if (!used[k] && rows[k] != 1) grid.repeated.push_back(k);
  }
  return grid;
}

std::optional<int64_t> find_index_range(const Shape& rows, const Affine& index, size_t axis,
                                        int64_t extent) {
  const auto grid = find_index_grid(rows, {index}, {extent});
  if (!grid || grid->columns[0].extent != rows[axis]) return std::nullopt;
  if (rows[axis] > 1 && grid->columns[0].axes != std::vector<size_t>{axis}) return std::nullopt;
  return grid->columns[0].begin;
}

ValueId gather_grid(Builder& build, ValueId data, const IndexGrid& grid, size_t num_prefix,
                    const std::string& name) {
  const Shape shape = build.shape(data);
  const size_t num_columns = grid.columns.size();
  std::vector<int64_t> begins(shape.size(), 0);
  std::vector<int64_t> ends = shape;
  for (size_t c = 0; c < num_columns; ++c) {
    begins[num_prefix + c] = grid.columns[c].begin;
    ends[num_prefix + c] = grid.columns[c].begin + grid.columns[c].extent;
  }
  ValueId x = build.slice_all(data, begins, ends);

  // One dimension per counting axis, in column order.
  const std::vector<size_t> order = column_order(grid);
  Shape split(shape.begin(), shape.begin() + static_cast<int64_t>(num_prefix));
  for (size_t axis : order) split.push_back(grid.rows[axis]);
  const Shape rest(shape.begin() + static_cast<int64_t>(num_prefix + num_columns), shape.end());
  split.insert(split.end(), rest.begin(), rest.end());
  x = build.reshape(x, split);

  // Then in row order.
  std::vector<int64_t> permutation = iota(num_prefix);
  for (size_t axis = 0; axis < grid.rows.size(); ++axis) {
    const auto at = std::ranges::find(order, axis);
    if (at != order.end()) {
      permutation.push_back(static_cast<int64_t>(num_prefix) + (at - order.begin()));
    }
  }
  append_range(permutation, num_prefix + order.size(), split.size());
  x = transpose_unless_sorted(build, x, std::move(permutation));

  Shape unit(shape.begin(), shape.begin() + static_cast<int64_t>(num_prefix));
  Shape full = unit;
  for (size_t axis = 0; axis < grid.rows.size(); ++axis) {
    const bool repeated = std::ranges::find(grid.repeated, axis) != grid.repeated.end();
    unit.push_back(repeated ? 1 : grid.rows[axis]);
    full.push_back(grid.rows[axis]);
  }
  unit.insert(unit.end(), rest.begin(), rest.end());
  full.insert(full.end(), rest.begin(), rest.end());
  x = build.reshape(x, unit, grid.repeated.empty() ? name : "");
  return build.expand(x, full, name);
}

ValueId scatter_grid(Builder& build, ValueId updates, const IndexGrid& grid, const Shape& shape,
                     const std::string& name) {
  const size_t num_rows = grid.rows.size();
  const size_t num_columns = grid.columns.size();
  std::vector<int64_t> repeated;
  for (size_t axis : grid.repeated) repeated.push_back(static_cast<int64_t>(axis));
  ValueId x = build.reduce_sum(updates, repeated, true);

  // Counting axes in column order, then the axes of extent 1, then the rest.
  const std::vector<size_t> order = column_order(grid);
  std::vector<int64_t> permutation;
  for (size_t axis : order) permutation.push_back(static_cast<int64_t>(axis));
  for (size_t axis = 0; axis < num_rows; ++axis) {
    if (std::ranges::find(order, axis) == order.end()) {
      permutation.push_back(static_cast<int64_t>(axis));
    }
  }
  append_range(permutation, num_rows, build.rank(x));
  x = transpose_unless_sorted(build, x, std::move(permutation));

  Shape box;
  std::vector<int64_t> before(shape.size(), 0);
  std::vector<int64_t> after(shape.size(), 0);
  for (size_t c = 0; c < num_columns; ++c) {
    const auto& column = grid.columns[c];
    box.push_back(column.extent);
    before[c] = column.begin;
    after[c] = shape[c] - column.begin - column.extent;
  }
  box.insert(box.end(), shape.begin() + static_cast<int64_t>(num_columns), shape.end());
  const bool cut = box != shape;
  x = build.reshape(x, box, cut ? "" : name);
  return cut ? pad_before_transpose(build, x, before, after, name) : x;
}

ValueId pad_before_transpose(Builder& build, ValueId x, const std::vector<int64_t>& before,
                             const std::vector<int64_t>& after, const std::string& name) {
  const Node* producer = build.graph().producer(x);
  if (producer == nullptr || !producer->is("Transpose")) return build.pad(x, before, after, name);
  std::vector<int64_t> permutation = producer->attributes.get_ints("perm");
  if (permutation.empty()) {
    permutation = iota(before.size());
    std::ranges::reverse(permutation);
  }
  std::vector<int64_t> inner_before(before.size());
  std::vector<int64_t> inner_after(after.size());
  for (size_t k = 0; k < permutation.size(); ++k) {
    inner_before[static_cast<size_t>(permutation[k])] = before[k];
    inner_after[static_cast<size_t>(permutation[k])] = after[k];
  }
  const ValueId inner = producer->input(0);
  return build.transpose(build.pad(inner, inner_before, inner_after), std::move(permutation), name);
}

}  // namespace autosp::transforms

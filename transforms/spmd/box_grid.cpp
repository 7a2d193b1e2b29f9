#include "transforms/spmd/box_grid.h"

#include <algorithm>

namespace autosp::transforms {

namespace {

// The tensor with two axes, number and extent of boxes, for each axis along which there are
// several.
struct SplitView {
  ir::Shape shape;
  std::vector<int64_t> blocks_first;  // the permutation that brings the numbers to the front
  ir::Shape permuted;

  explicit SplitView(const BoxGrid& grid) {
    std::vector<int64_t> number_at(grid.counts.size(), -1);
    std::vector<int64_t> extent_at;
    for (size_t k = 0; k < grid.counts.size(); ++k) {
      if (grid.counts[k] > 1) {
        number_at[k] = static_cast<int64_t>(shape.size());
        shape.push_back(grid.counts[k]);
      }
      extent_at.push_back(static_cast<int64_t>(shape.size()));
      shape.push_back(grid.block[k]);
    }
    for (size_t axis : grid.axes) blocks_first.push_back(number_at[axis]);
    blocks_first.insert(blocks_first.end(), extent_at.begin(), extent_at.end());
    for (int64_t axis : blocks_first) permuted.push_back(shape[static_cast<size_t>(axis)]);
  }
};

ValueId transpose(ir::Builder& build, ValueId x, const std::vector<int64_t>& permutation) {
  return std::ranges::is_sorted(permutation) ? x : build.transpose(x, permutation);
}

std::vector<int64_t> inverse(const std::vector<int64_t>& permutation) {
  std::vector<int64_t> result(permutation.size());
  for (size_t k = 0; k < permutation.size(); ++k) {
    result[static_cast<size_t>(permutation[k])] = static_cast<int64_t>(k);
  }
  return result;
}

}  // namespace

std::optional<BoxGrid> find_box_grid(const ir::Shape& tensor, const std::vector<int64_t>& begin,
                                     const std::vector<int64_t>& extent) {
  const size_t rank = tensor.size();
  if (rank == 0 || extent.size() < rank) return std::nullopt;
  const size_t members = extent.size() / rank;
  BoxGrid grid{.block = {extent.begin(), extent.begin() + static_cast<int64_t>(rank)},
               .counts = {},
               .axes = {}};
  for (size_t k = 0; k < rank; ++k) {
    if (grid.block[k] == 0 || tensor[k] % grid.block[k] != 0) return std::nullopt;
    grid.counts.push_back(tensor[k] / grid.block[k]);
    if (grid.counts[k] > 1) grid.axes.push_back(k);
  }
  if (grid.num_blocks() != static_cast<int64_t>(members)) return std::nullopt;
  // Along the outer axes the first step comes after more members.
  auto first_step = [&](size_t axis) {
    size_t member = 0;
    while (member < members && begin[member * rank + axis] != grid.block[axis]) ++member;
    return member;
  };
  std::ranges::sort(grid.axes, std::greater(), first_step);
  for (size_t member = 0; member < members; ++member) {
    std::vector<int64_t> expected(rank, 0);
    auto place = static_cast<int64_t>(member);
    for (size_t k = grid.axes.size(); k-- > 0;) {
      const size_t axis = grid.axes[k];
      expected[axis] = place % grid.counts[axis] * grid.block[axis];
      place /= grid.counts[axis];
    }
    for (size_t k = 0; k < rank; ++k) {
      if (begin[member * rank + k] != expected[k]) return std::nullopt;
      if (extent[member * rank + k] != grid.block[k]) return std::nullopt;
    }
  }
  return grid;
}

ValueId to_blocks(ir::Builder& build, ValueId tensor, const BoxGrid& grid) {
  const SplitView view(grid);
  ir::Shape shape = {grid.num_blocks()};
  shape.insert(shape.end(), grid.block.begin(), grid.block.end());
  const ValueId split = build.reshape(tensor, view.shape);
  return build.reshape(transpose(build, split, view.blocks_first), shape);
}

ValueId from_blocks(ir::Builder& build, ValueId blocks, const BoxGrid& grid) {
  const SplitView view(grid);
  ir::Shape shape;
  for (size_t k = 0; k < grid.block.size(); ++k) shape.push_back(grid.counts[k] * grid.block[k]);
  const ValueId split = build.reshape(blocks, view.permuted);
  return build.reshape(transpose(build, split, inverse(view.blocks_first)), shape);
}

}  // namespace autosp::transforms

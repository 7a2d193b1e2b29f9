// A box exchange seen as an exchange of equal blocks, which is all that other runtimes have.
//
// When ranks trade heads for sequence, the boxes that a rank sends cut its operand into a grid:
//
//   X [batch, heads, tokens]      4 members: one per piece of heads
//   -> [batch, 4, heads / 4, tokens] -> [4, batch, heads / 4, tokens]     blocks, one per member
//
// and the boxes that it receives are put together by the same steps backwards.
#pragma once

#include <optional>
#include <vector>

#include "ir/builder.h"

namespace autosp::transforms {

struct BoxGrid {
  ir::Shape block;           // extents of every box
  ir::Shape counts;          // boxes along every axis of the tensor
  std::vector<size_t> axes;  // along which there are several; the last varies fastest over members

  int64_t num_blocks() const { return ir::num_elements(counts); }
};

// The grid of boxes given as in autosp::AllToAll: for each member, begin and extent along each axis
// of a tensor of this shape. Nullopt when they are of different extents, do not tile the tensor, or
// do so in an order that is not the members'.
std::optional<BoxGrid> find_box_grid(const ir::Shape& tensor, const std::vector<int64_t>& begin,
                                     const std::vector<int64_t>& extent);

// [members, block...] of a tensor, by Reshape and Transpose; and back. Nothing is emitted where
// nothing changes.
ValueId to_blocks(ir::Builder& build, ValueId tensor, const BoxGrid& grid);
ValueId from_blocks(ir::Builder& build, ValueId blocks, const BoxGrid& grid);

}  // namespace autosp::transforms

// Index arithmetic of a move: which block of a value a rank holds before and after it.
#pragma once

#include <vector>

#include "transforms/spmd/program.h"

namespace autosp::transforms {

// A value seen with one axis per dimension, but one per atom for the dimensions that hold an atom
// which the move splits or joins; so every shard is a box of this view.
class MoveView {
 public:
  MoveView(const SpmdProgram& program, const Move& move);

  using Box = std::vector<shard::Interval>;  // by view axis, in global indices
  Box before(int64_t rank) const { return box(from_, rank); }
  Box after(int64_t rank) const { return box(to_, rank); }

  // The view axis that a mesh axis splits before or after the move.
  size_t split_axis_before(size_t mesh_axis) const { return view_axis(from_[mesh_axis].position); }
  size_t split_axis_after(size_t mesh_axis) const { return view_axis(to_[mesh_axis].position); }

 private:
  Box box(const shard::Layout& layout, int64_t rank) const;
  size_t view_axis(shard::AtomPosition position) const;

  const shard::Mesh& mesh_;
  const AtomExtents& atoms_;
  const shard::Layout& from_;
  const shard::Layout& to_;
  std::vector<bool> expanded_;  // by dimension: one view axis per atom
};

ir::Shape extents(const MoveView::Box& box);
MoveView::Box intersect(const MoveView::Box& a, const MoveView::Box& b);  // empty: all extents 0

// The box of a fed input on a rank, by dimension. Split dimensions are split at their major atom.
std::vector<shard::Interval> input_slice(const SpmdProgram& program, const Placed& placed,
                                         int64_t rank);

// Bytes the rank sends in a move.
int64_t bytes_sent(const SpmdProgram& program, const Move& move, int64_t rank);

}  // namespace autosp::transforms

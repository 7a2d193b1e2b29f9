#include "transforms/spmd/geometry.h"

#include <algorithm>

#include "base/error.h"

namespace autosp::transforms {

using shard::AtomPosition;
using shard::Interval;

MoveView::MoveView(const SpmdProgram& program, const Move& move)
    : mesh_(program.plan->mesh),
      atoms_(program.at(move.to).atoms),
      from_(program.at(move.from).layout),
      to_(program.at(move.to).layout),
      expanded_(atoms_.size(), false) {
  for (size_t axis : move.axes) {
    for (const auto* layout : {&from_[axis], &to_[axis]}) {
      if (!layout->is_split()) continue;
      const auto dim = static_cast<size_t>(layout->position.dim);
      if (atoms_[dim].size() > 1) expanded_[dim] = true;
    }
  }
}

size_t MoveView::view_axis(AtomPosition position) const {
  size_t axis = 0;
  for (size_t d = 0; d < static_cast<size_t>(position.dim); ++d)
    axis += expanded_[d] ? atoms_[d].size() : 1;
  const bool expanded = expanded_[static_cast<size_t>(position.dim)];
  return axis + (expanded ? static_cast<size_t>(position.atom) : 0);
}

MoveView::Box MoveView::box(const shard::Layout& layout, int64_t rank) const {
  const auto coordinates = mesh_.coordinates(rank);
  Box result;
  for (size_t d = 0; d < atoms_.size(); ++d) {
    std::vector<Interval> ranges;
    for (size_t a = 0; a < atoms_[d].size(); ++a) {
      const AtomPosition position{static_cast<int>(d), static_cast<int>(a)};
      ranges.push_back(shard::local_range(layout, mesh_, coordinates, position, atoms_[d][a]));
    }
    if (expanded_[d]) {
      result.insert(result.end(), ranges.begin(), ranges.end());
    } else if (ranges.size() == 1) {
      result.push_back(ranges[0]);
    } else {  // not touched by the move: the same on every rank that takes part
      int64_t extent = 1;
      for (const Interval& range : ranges) extent *= range.extent();
      result.push_back({0, extent});
    }
  }
  return result;
}

ir::Shape extents(const MoveView::Box& box) {
  ir::Shape shape;
  for (const Interval& range : box) shape.push_back(range.extent());
  return shape;
}

MoveView::Box intersect(const MoveView::Box& a, const MoveView::Box& b) {
  MoveView::Box result;
  bool empty = false;
  for (size_t k = 0; k < a.size(); ++k) {
    result.push_back({std::max(a[k].begin, b[k].begin), std::min(a[k].end, b[k].end)});
    empty = empty || result.back().extent() <= 0;
  }
  if (empty) {
    for (size_t k = 0; k < a.size(); ++k) result[k] = {a[k].begin, a[k].begin};
  }
  return result;
}

std::vector<Interval> input_slice(const SpmdProgram& program, const Placed& placed, int64_t rank) {
  std::vector<Interval> slice;
  for (const auto& ranges : local_ranges(placed, program.plan->mesh, rank)) {
    Interval whole{0, 1};
    for (size_t a = ranges.size(); a-- > 0;) {
      const int64_t extent = whole.extent();
      AUTOSP_CHECK(a == 0 || ranges[a].begin == 0);
      whole = {ranges[a].begin * extent, ranges[a].end * extent};
    }
    slice.push_back(whole);
  }
  return slice;
}

int64_t bytes_sent(const SpmdProgram& program, const Move& move, int64_t rank) {
  if (!is_collective(move.kind)) return 0;
  const ir::Type& type = program.graph().type(program.at(move.to).value);
  const auto element = static_cast<int64_t>(ir::element_size(type.dtype));
  const auto group = group_of(rank, move.axes, program.plan->mesh);
  const auto members = static_cast<int64_t>(group.size());
  const MoveView view(program, move);
  auto bytes = [&](const MoveView::Box& box) { return ir::num_elements(extents(box)) * element; };
  switch (move.kind) {
    case StepKind::kAllToAll: {
      int64_t total = 0;
      for (int64_t peer : group) {
        if (peer != rank) total += bytes(intersect(view.before(rank), view.after(peer)));
      }
      return total;
    }
    case StepKind::kAllGather:
      return bytes(view.before(rank)) * (members - 1);
    case StepKind::kReduceScatter:
      return bytes(view.before(rank)) - bytes(view.after(rank));
    case StepKind::kAllReduce:
      return 2 * bytes(view.before(rank)) * (members - 1) / members;
    case StepKind::kSlice:
    case StepKind::kKeepOnFirst:
      break;
  }
  return 0;
}

}  // namespace autosp::transforms

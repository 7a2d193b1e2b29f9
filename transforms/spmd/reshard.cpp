#include "transforms/spmd/reshard.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "base/error.h"

namespace autosp::transforms {

using shard::AxisLayout;
using shard::Layout;
using shard::Mesh;

std::string_view name_of(StepKind kind) {
  switch (kind) {
    case StepKind::kSlice:
      return "slice";
    case StepKind::kKeepOnFirst:
      return "keep-on-first";
    case StepKind::kAllToAll:
      return "all-to-all";
    case StepKind::kAllGather:
      return "all-gather";
    case StepKind::kReduceScatter:
      return "reduce-scatter";
    case StepKind::kAllReduce:
      return "all-reduce";
  }
  return "";
}

bool is_collective(StepKind kind) {
  return kind != StepKind::kSlice && kind != StepKind::kKeepOnFirst;
}

namespace {

StepKind kind_of(const AxisLayout& from, const AxisLayout& to) {
  if (from.is_replicated()) return to.is_split() ? StepKind::kSlice : StepKind::kKeepOnFirst;
  if (from.is_partial()) return to.is_split() ? StepKind::kReduceScatter : StepKind::kAllReduce;
  AUTOSP_CHECK(!to.is_partial(), "a split value cannot become partial");
  return to.is_split() ? StepKind::kAllToAll : StepKind::kAllGather;
}

// Every rank holds one range of each atom: where a sequence axis splits an atom by nested cut
// points, so do all sequence axes outside of it.
bool is_contiguous(const Layout& layout, const Mesh& mesh) {
  const auto axes = shard::sequence_axes(mesh);
  for (size_t i = 0; i < axes.size(); ++i) {
    const AxisLayout& inner = layout[axes[i]];
    if (!inner.is_split() || !inner.nested) continue;
    for (size_t j = 0; j < i; ++j) {
      if (mesh.axes()[axes[j]].size > 1 && layout[axes[j]] != inner) return false;
    }
  }
  return true;
}

// Whether two steps in a row can be one collective over the union of their axes.
bool can_merge(const ReshardStep& a, const ReshardStep& b) {
  if (a.kind != b.kind) return false;
  const AxisLayout& a_from = a.from[a.axes[0]];
  const AxisLayout& b_from = b.from[b.axes[0]];
  const AxisLayout& a_to = a.to[a.axes[0]];
  const AxisLayout& b_to = b.to[b.axes[0]];
  switch (a.kind) {
    case StepKind::kAllGather:
      return a_from == b_from && a_from.nested;
    case StepKind::kReduceScatter:
      return a_to == b_to && a_to.nested;
    case StepKind::kSlice:
    case StepKind::kKeepOnFirst:
    case StepKind::kAllReduce:
    case StepKind::kAllToAll:
      return true;
  }
  return false;
}

std::vector<ReshardStep> merged(const std::vector<ReshardStep>& steps) {
  std::vector<ReshardStep> result;
  for (const ReshardStep& step : steps) {
    if (!result.empty() && can_merge(result.back(), step)) {
      ReshardStep& last = result.back();
      last.axes.insert(last.axes.end(), step.axes.begin(), step.axes.end());
      std::ranges::sort(last.axes);
      last.to = step.to;
    } else {
      result.push_back(step);
    }
  }
  return result;
}

// Mesh axes that change in one step.
using AxisChange = std::vector<size_t>;

// One change per axis, except that sequence axes whose nested cut points all move do so together:
// between the old cut points of one and the new ones of another no layout exists.
std::vector<AxisChange> axis_changes(const Layout& from, const Layout& to) {
  std::vector<AxisChange> changes;
  AxisChange moved_cuts;
  for (size_t k = 0; k < from.size(); ++k) {
    if (from[k] == to[k]) continue;
    if (from[k].nested && to[k].nested) {
      moved_cuts.push_back(k);
    } else {
      changes.push_back({k});
    }
  }
  if (!moved_cuts.empty()) changes.push_back(moved_cuts);
  std::ranges::sort(changes);
  return changes;
}

}  // namespace

std::vector<ReshardStep> reshard_steps(const Layout& from, const Layout& to, const Mesh& mesh) {
  std::vector<AxisChange> order = axis_changes(from, to);
  std::optional<std::vector<ReshardStep>> best;
  int64_t best_bytes = std::numeric_limits<int64_t>::max();
  do {
    std::vector<ReshardStep> steps;
    Layout at = from;
    bool valid = true;
    for (const AxisChange& axes : order) {
      Layout next = at;
      for (size_t axis : axes) next[axis] = to[axis];
      steps.push_back({kind_of(at[axes[0]], to[axes[0]]), axes, at, next});
      valid = valid && is_contiguous(next, mesh);
      at = next;
    }
    if (!valid) continue;
    const int64_t bytes = estimated_bytes(steps, mesh, int64_t{1} << 30);
    if (best && bytes >= best_bytes) continue;
    best = merged(steps);
    best_bytes = bytes;
  } while (std::ranges::next_permutation(order).found);
  AUTOSP_CHECK(best.has_value(), "no order of steps from [{}] to [{}]",
               shard::to_string(from, mesh), shard::to_string(to, mesh));
  return *best;
}

int64_t estimated_bytes(const std::vector<ReshardStep>& steps, const Mesh& mesh,
                        int64_t global_bytes) {
  int64_t total = 0;
  for (const ReshardStep& step : steps) {
    // What other axes split is moved by each of their shards alone.
    int64_t bytes = global_bytes;
    int64_t ranks = 1;
    for (size_t k = 0; k < mesh.num_axes(); ++k) {
      const bool own = std::ranges::find(step.axes, k) != step.axes.end();
      if (own) {
        ranks *= mesh.axes()[k].size;
      } else if (step.from[k].is_split()) {
        bytes /= mesh.axes()[k].size;
      }
    }
    if (is_collective(step.kind)) {
      const size_t axis = step.axes[0];
      total += shard::reshard_bytes(step.from[axis], step.to[axis], bytes, ranks);
    }
  }
  return total;
}

std::vector<int64_t> group_of(int64_t rank, const std::vector<size_t>& axes, const Mesh& mesh) {
  std::vector<int64_t> group;
  const auto own = mesh.coordinates(rank);
  for (int64_t other = 0; other < mesh.size(); ++other) {  // rank order is coordinate order
    const auto coordinates = mesh.coordinates(other);
    bool together = true;
    for (size_t k = 0; k < mesh.num_axes(); ++k) {
      const bool moves = std::ranges::find(axes, k) != axes.end();
      together = together && (moves || coordinates[k] == own[k]);
    }
    if (together) group.push_back(other);
  }
  return group;
}

}  // namespace autosp::transforms

#include "transforms/recompute/cut.h"

#include <algorithm>
#include <set>

#include "shard/min_cut.h"

namespace autosp::transforms {

using shard::MinCut;

CutProblem::CutProblem(const ForwardPass& forward)
    : forbidden(forward.instructions().size(), false),
      execute_again(forward.instructions().size(), 0),
      keep(forward.program().placed.size(), 0) {
  for (size_t v = 0; v < keep.size(); ++v) {
    const PlacedId id(v);
    if (!forward.is_output(id)) keep[v] = forward.bytes(id);
  }
}

std::vector<bool> solve(const ForwardPass& forward, const CutProblem& problem) {
  MinCut cut;
  const size_t count = forward.instructions().size();
  std::vector<int> instruction_vertex(count, -1);
  std::vector<int> value_vertex(forward.program().placed.size(), -1);
  for (size_t k = 0; k < count; ++k) {
    if (!forward.is_forward(k)) continue;
    const int vertex = instruction_vertex[k] = cut.add_vertex();
    cut.add_edge(cut.source(), vertex,
                 problem.forbidden[k] ? MinCut::kInfinite : problem.execute_again[k]);
    for (PlacedId operand : operands_of(forward.instructions()[k])) {
      const int value = value_vertex[operand.index()];
      if (value >= 0) cut.add_edge(value, vertex, MinCut::kInfinite);
    }
    for (PlacedId result : results_of(forward.instructions()[k])) {
      const int value = value_vertex[result.index()] = cut.add_vertex();
      cut.add_edge(vertex, value,
                   forward.is_view(k) ? MinCut::kInfinite : problem.keep[result.index()]);
    }
  }
  for (PlacedId id : forward.wanted()) {
    cut.add_edge(value_vertex[id.index()], cut.sink(), MinCut::kInfinite);
  }
  const MinCut::Result result = cut.solve();
  std::vector<bool> recomputed(count, false);
  for (size_t k = 0; k < count; ++k) {
    recomputed[k] = instruction_vertex[k] >= 0 &&
                    result.on_sink_side[static_cast<size_t>(instruction_vertex[k])];
  }
  kept_values(forward, recomputed);
  return recomputed;
}

std::vector<PlacedId> kept_values(const ForwardPass& forward, std::vector<bool>& recomputed) {
  std::vector<bool> used(recomputed.size(), false);
  std::vector<bool> met(forward.program().placed.size(), false);
  std::vector<PlacedId> pending = forward.wanted();
  std::set<std::pair<int, PlacedId>> kept;  // in order of making
  while (!pending.empty()) {
    const PlacedId id = pending.back();
    pending.pop_back();
    if (met[id.index()] || forward.producer(id) < 0) continue;
    met[id.index()] = true;
    const auto k = static_cast<size_t>(forward.producer(id));
    if (!recomputed[k]) {
      const PlacedId storage = forward.storage(id);
      if (forward.producer(storage) >= 0) kept.emplace(forward.producer(storage), storage);
      continue;
    }
    used[k] = true;
    for (PlacedId operand : operands_of(forward.instructions()[k])) pending.push_back(operand);
  }
  recomputed = std::move(used);
  std::vector<PlacedId> result;
  for (const auto& [made, id] : kept) result.push_back(id);
  return result;
}

}  // namespace autosp::transforms

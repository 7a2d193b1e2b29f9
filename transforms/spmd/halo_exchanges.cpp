#include "transforms/spmd/halo_exchanges.h"

#include <algorithm>
#include <map>

#include "transforms/spmd/geometry.h"

namespace autosp::transforms {

using shard::AxisLayout;
using shard::Halo;
using shard::Layout;

namespace {

// Whether the move changes nothing but cut points.
bool moves_cuts(const SpmdProgram& program, const Move& move) {
  if (move.kind != StepKind::kAllToAll) return false;
  const Layout& from = program.at(move.from).layout;
  const Layout& to = program.at(move.to).layout;
  return std::ranges::all_of(move.axes, [&](size_t axis) {
    return from[axis].is_split() && to[axis].is_split() &&
           from[axis].position == to[axis].position && from[axis].nested == to[axis].nested;
  });
}

// How far the shards of the windows reach beyond those of the value.
Halo reach(const AxisLayout& value, const std::vector<const AxisLayout*>& windows) {
  Halo halo;
  for (const AxisLayout* window : windows) {
    for (size_t k = 0; k + 1 < value.cuts.size(); ++k) {
      halo.before = std::max(halo.before, value.cuts[k] - window->cuts[k]);
      halo.after = std::max(halo.after, window->cuts[k + 1] - value.cuts[k + 1]);
    }
  }
  return halo;
}

class HaloJoiner {
 public:
  explicit HaloJoiner(SpmdProgram program) : program_(std::move(program)) {}

  SpmdProgram join() {
    for (const auto& [key, moves] : groups()) {
      if (moves.size() > 1) join(moves);
    }
    if (joined_.empty()) return std::move(program_);
    std::vector<Instruction> instructions;
    for (size_t k = 0; k < program_.instructions.size(); ++k) {
      if (const auto found = joined_.find(k); found != joined_.end()) {
        instructions.emplace_back(found->second);
      }
      instructions.push_back(std::move(program_.instructions[k]));
    }
    program_.instructions = std::move(instructions);
    return std::move(program_);
  }

 private:
  // What moves have in common that one exchange can stand for.
  struct Key {
    PlacedId from;
    std::vector<size_t> axes;
    Phase phase;
    Purpose purpose;
    auto operator<=>(const Key&) const = default;
  };

  // By what the moves begin with: a window may be fetched from where the one before it lies.
  std::map<Key, std::vector<size_t>> groups() const {
    std::map<Key, std::vector<size_t>> result;
    std::map<PlacedId, Key> made_by;
    for (size_t k = 0; k < program_.instructions.size(); ++k) {
      const auto* move = std::get_if<Move>(&program_.instructions[k]);
      if (move == nullptr || !moves_cuts(program_, *move)) continue;
      Key key{move->from, move->axes, move->phase, move->purpose};
      if (const auto before = made_by.find(move->from); before != made_by.end()) {
        key.from = before->second.from;
        if (key != before->second) key.from = move->from;
      }
      result[key].push_back(k);
      made_by.emplace(move->to, std::move(key));
    }
    return result;
  }

  const Move& move(size_t k) const { return std::get<Move>(program_.instructions[k]); }

  int64_t bytes(const Move& move) const {
    int64_t sum = 0;
    for (int64_t rank = 0; rank < program_.plan->mesh.size(); ++rank) {
      sum += bytes_sent(program_, move, rank);
    }
    return sum;
  }

  void join(const std::vector<size_t>& moves) {
    const Move& first = move(moves.front());
    Placed halo = program_.at(first.from);
    for (size_t axis : first.axes) {
      std::vector<const AxisLayout*> windows;
      for (size_t k : moves) windows.push_back(&program_.at(move(k).to).layout[axis]);
      halo.layout[axis].halo = reach(halo.layout[axis], windows);
    }
    Move joined = first;
    joined.to = PlacedId(program_.placed.size());
    program_.placed.push_back(std::move(halo));
    int64_t apart = 0;
    for (size_t k : moves) apart += bytes(move(k));
    if (bytes(joined) > apart) {
      program_.placed.pop_back();
      return;
    }
    for (size_t k : moves) {
      auto& window = std::get<Move>(program_.instructions[k]);
      window.from = joined.to;
      window.kind = StepKind::kSlice;
    }
    joined_.emplace(moves.front(), std::move(joined));
  }

  SpmdProgram program_;
  std::map<size_t, Move> joined_;  // by the instruction that it goes before
};

}  // namespace

SpmdProgram join_halo_exchanges(SpmdProgram program) {
  return HaloJoiner(std::move(program)).join();
}

}  // namespace autosp::transforms

#include "transforms/tile/order.h"

#include <algorithm>

namespace autosp::transforms {

namespace {

// By placed value: the instruction that makes it, or -1.
std::vector<int> producers(const SpmdProgram& program) {
  std::vector<int> producer(program.placed.size(), -1);
  for (size_t k = 0; k < program.instructions.size(); ++k) {
    for (PlacedId id : results_of(program.instructions[k])) {
      producer[id.index()] = static_cast<int>(k);
    }
  }
  return producer;
}

Phase phase_at(const SpmdProgram& program, size_t k) { return phase_of(program.instructions[k]); }

bool runs_early(const SpmdProgram& program, const Region& region) {
  const auto is_forward = [&](size_t k) { return phase_at(program, k) == Phase::kForward; };
  return std::ranges::any_of(region.instructions, is_forward) &&
         !std::ranges::all_of(region.instructions, is_forward);
}

class Originals {
 public:
  explicit Originals(const SpmdProgram& program) : program_(program), by_value_(values()) {
    for (const Instruction& instruction : program.instructions) {
      if (phase_of(instruction) != Phase::kForward) continue;
      for (PlacedId id : results_of(instruction)) {
        by_value_[program.at(id).value.index()].push_back(id);
      }
    }
  }

  PlacedId of(PlacedId copy) const {
    const Placed& wanted = program_.at(copy);
    for (PlacedId id : by_value_[wanted.value.index()]) {
      const Placed& placed = program_.at(id);
      if (placed.layout == wanted.layout && placed.atoms == wanted.atoms) return id;
    }
    return copy;
  }

 private:
  std::vector<std::vector<PlacedId>> values() const {
    return std::vector<std::vector<PlacedId>>(program_.graph().values().size());
  }

  const SpmdProgram& program_;
  std::vector<std::vector<PlacedId>> by_value_;
};

void drop_unread_copies(SpmdProgram& program) {
  std::vector<bool> read(program.placed.size(), false);
  for (PlacedId id : program.outputs) read[id.index()] = true;
  std::vector<Instruction> kept;
  for (size_t k = program.instructions.size(); k-- > 0;) {
    const Instruction& instruction = program.instructions[k];
    const bool copy = phase_of(instruction) == Phase::kRecompute;
    const bool used =
        std::ranges::any_of(results_of(instruction), [&](PlacedId id) { return read[id.index()]; });
    if (copy && !used) continue;
    for (PlacedId id : operands_of(instruction)) read[id.index()] = true;
    kept.push_back(instruction);
  }
  std::ranges::reverse(kept);
  program.instructions = std::move(kept);
}

bool has_cycle(const SpmdProgram& program, const std::vector<int>& producer,
               const std::vector<int>& region_of, size_t regions) {
  // Units are the regions, then the instructions of none.
  const auto unit_of = [&](size_t k) {
    return region_of[k] >= 0 ? static_cast<size_t>(region_of[k]) : regions + k;
  };
  const size_t count = regions + program.instructions.size();
  std::vector<std::vector<size_t>> readers(count);
  std::vector<int> waits_for(count, 0);
  for (size_t k = 0; k < program.instructions.size(); ++k) {
    for (PlacedId id : operands_of(program.instructions[k])) {
      const int made = producer[id.index()];
      if (made < 0 || unit_of(static_cast<size_t>(made)) == unit_of(k)) continue;
      readers[unit_of(static_cast<size_t>(made))].push_back(unit_of(k));
      ++waits_for[unit_of(k)];
    }
  }
  std::vector<size_t> ready;
  for (size_t unit = 0; unit < count; ++unit) {
    if (waits_for[unit] == 0) ready.push_back(unit);
  }
  size_t done = 0;
  while (!ready.empty()) {
    const size_t unit = ready.back();
    ready.pop_back();
    ++done;
    for (size_t reader : readers[unit]) {
      if (--waits_for[reader] == 0) ready.push_back(reader);
    }
  }
  return done < count;
}

}  // namespace

SpmdProgram read_originals(const SpmdProgram& program, const std::vector<Region>& regions) {
  const Originals originals(program);
  const std::vector<int> producer = producers(program);
  SpmdProgram result = program;
  for (const Region& region : regions) {
    if (!runs_early(program, region)) continue;
    for (size_t k : region.instructions) {
      for (PlacedId& id : std::get<Compute>(result.instructions[k]).operands) {
        if (!id || producer[id.index()] < 0) continue;
        const auto made = static_cast<size_t>(producer[id.index()]);
        const bool inside = std::ranges::binary_search(region.instructions, made);
        if (!inside && phase_at(program, made) == Phase::kRecompute) id = originals.of(id);
      }
    }
  }
  drop_unread_copies(result);
  return result;
}

std::vector<Region> without_cycles(const SpmdProgram& program, std::vector<Region> regions) {
  const std::vector<int> producer = producers(program);
  std::vector<int> region_of(program.instructions.size(), -1);
  std::vector<Region> kept;
  for (Region& region : regions) {
    for (size_t k : region.instructions) region_of[k] = static_cast<int>(kept.size());
    if (has_cycle(program, producer, region_of, kept.size() + 1)) {
      for (size_t k : region.instructions) region_of[k] = -1;
      continue;
    }
    kept.push_back(std::move(region));
  }
  return kept;
}

}  // namespace autosp::transforms

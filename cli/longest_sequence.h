// The longest sequence that fits into a given memory.
//
// Where the graph of a rank is the same at two lengths, every buffer's size is a straight line
// through the two, and the arena at any other length follows without planning the model again. A
// few real plans are enough: two to draw the lines, one to verify the answer. Arenas have gaps, so
// a longer sequence may fit where a shorter one does not: what is live is a bound that grows
// steadily, and the search goes down from where it ends.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <vector>

#include "prediction.h"

namespace autosp::cli {

struct LengthLimits {
  int64_t memory = 0;  // bytes of a rank
  int64_t arena = std::numeric_limits<int64_t>::max();
  int64_t longest = int64_t{1} << 24;
};

// The memory that a length takes, one entry per kind of rank; nothing where the model cannot be
// planned at that length.
using PlanAt = std::function<std::optional<std::vector<RankMemory>>(int64_t sequence)>;

// How finely a length is told, both in steps.
int64_t resolution(int64_t length);

// What every length must be a multiple of: the smallest divisor of `known`, a length that the model
// takes, which leads to another that it takes.
int64_t accepted_multiple(const std::function<bool(int64_t)>& takes, int64_t known);

// The longest multiple of `step` that fits, 0 when there is none. `known` is a length that can be
// planned.
int64_t longest_sequence(const PlanAt& plan_at, const LengthLimits& limits, int64_t known,
                         int64_t step);

}  // namespace autosp::cli

// What the memory of a rank holds, as users think of it: during a step and at its peak.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "executor/program.h"

namespace autosp::executor {

enum class Bucket : uint8_t {
  kParameters,            // outside the arena
  kInputs,                // outside the arena: what is fed, and constants
  kOutputs,               // gradients, the loss
  kKeptActivations,       // of the forward pass, until the backward pass has read them
  kRecomputed,            // made again by the backward pass
  kAttentionTemporaries,  // scratch memory of attention
  kCommunication,         // what collectives have received
  kTemporaries,           // everything else that is live
  kGaps,                  // of the arena: the largest it gets less what is live
};
inline constexpr size_t kBuckets = 9;
std::string_view name_of(Bucket bucket);

// Bytes by bucket. Those of the arena add up to MemoryPlan::arena. Relies on the phases that the
// nodes of a rank graph carry; without them nothing counts as kept or recomputed.
using MemoryBuckets = std::array<int64_t, kBuckets>;
// While each node of the program's graph runs, in their order, and once more after the last one.
std::vector<MemoryBuckets> memory_by_step(const Program& program,
                                          const std::vector<bool>& is_parameter_by_input);
// Of those the first at which most of the arena is live.
MemoryBuckets memory_at_peak(const Program& program,
                             const std::vector<bool>& is_parameter_by_input);

}  // namespace autosp::executor

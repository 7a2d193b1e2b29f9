// What the backward pass keeps from the forward pass, and what it computes again.
//
// A plan is made once for the whole program, on the sizes of the rank that holds most, so all ranks
// recompute the same, collectives included. Applying it adds copies of forward instructions just
// before the first backward instruction that reads them; what is kept simply stays alive.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "transforms/spmd/program.h"

namespace autosp::transforms {

// By falling memory and rising time, usually.
enum class RecomputePolicy : uint8_t {
  kNone,    // everything that the backward pass reads is kept
  kMinCut,  // cheap, fusible chains are recomputed where that keeps fewer bytes; never products,
            // attention, collectives or strong reductions (the conservative rule of PyTorch)
  kSac,     // layer inputs and attention outputs are kept, all else between them is recomputed
  kFull,    // layer inputs are kept
};
std::string_view name_of(RecomputePolicy policy);

struct RecomputePlan {
  // By instruction: whether the backward pass executes it again.
  std::vector<bool> recomputed;
  std::vector<PlacedId> kept;  // forward values that live into the backward pass, by storage
  int64_t kept_bytes = 0;      // of these, on the rank that holds most
};

// Throws Error when the program has no loss: without one nothing tells forward from backward.
RecomputePlan plan_recompute(const SpmdProgram& program, RecomputePolicy policy);

SpmdProgram apply_recompute(const SpmdProgram& program, const RecomputePlan& plan);

}  // namespace autosp::transforms

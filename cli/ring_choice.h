// What --ring auto chooses.
#pragma once

#include "model_arguments.h"
#include "recompute_arguments.h"

namespace autosp::cli {

// Of a rank's planned peak, what a ring has to save for --ring auto to take it: the same bytes go
// in more and smaller pieces, each of which has to be waited for.
inline constexpr double kRingSaving = 0.2;

// The arguments with `off`, `on` or `zigzag` in the place of `auto`, by planning all three: with
// the recomputation asked for, or, where that depends on the memory there is, as much of it as
// possible.
PlanArguments with_ring_chosen(PlanArguments plan, const LoadedModel& model,
                               const RecomputeArguments& recompute, const cost::Device& device,
                               bool overlap = false);

}  // namespace autosp::cli

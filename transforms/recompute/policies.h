// The fixed policies, as choices over a forward pass. Private to this folder.
#pragma once

#include <vector>

#include "transforms/recompute/cut.h"
#include "transforms/recompute/recompute.h"

namespace autosp::transforms {

// By instruction: executed again.
std::vector<bool> choose(const ForwardPass& forward, RecomputePolicy policy);

// Layer inputs are kept, and what must not be made twice is not; everything else is open.
CutProblem priced_problem(const ForwardPass& forward);

RecomputePlan describe_plan(const ForwardPass& forward, std::vector<bool> recomputed);

// Throws Error when nothing tells forward from backward.
void require_loss(const SpmdProgram& program);

}  // namespace autosp::transforms

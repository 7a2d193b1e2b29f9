// The peak of a step under a choice of recomputed instructions, without making the program. Private
// to this folder.
#pragma once

#include <cstdint>
#include <vector>

#include "transforms/recompute/forward_pass.h"

namespace autosp::transforms {

// What is executed, in order. Copies stand just before their first backward reader, operands first.
struct Step {
  size_t instruction = 0;
  bool copy = false;
};
std::vector<Step> schedule(const ForwardPass& forward, const std::vector<bool>& recomputed);

// Bytes live at once at the worst step, on the rank that holds most: results, with views sharing
// their operand's bytes and elementwise results written over operands that die. Scratch memory and
// gaps between buffers come on top of it.
int64_t simulated_peak(const ForwardPass& forward, const std::vector<bool>& recomputed);

}  // namespace autosp::transforms

// The least recomputation that fits into a given memory.
//
// A minimum cut at a price per second of recomputation proposes what to keep; as the price rises,
// the proposals become a chain of nested choices, and each difference falls apart into pieces that
// can be undone one by one. That makes some hundred candidates, to which the fixed policies are
// added. Bytes that are cut are not a peak, so every candidate is judged by its simulated peak, and
// the one that is chosen by its real one. The candidates do not depend on the budget: with more
// memory a step never takes longer.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "transforms/recompute/recompute.h"

namespace autosp::transforms {

struct BudgetOptions {
  int64_t bytes = 0;
  // By instruction: what executing it again takes.
  std::vector<double> seconds;
  // The memory that a program takes, in bytes, on the rank that takes most; where some rank takes
  // more than `enough`, what that one takes.
  std::function<int64_t(const SpmdProgram&, int64_t enough)> peak;
  // Whether `peak` tiles the program, and so can be below what would be live without tiles.
  bool tiled = false;
};

// Throws Error, naming the least memory that recomputation can reach, when that is above the
// budget.
RecomputePlan plan_recompute_within(const SpmdProgram& program, const BudgetOptions& options);

}  // namespace autosp::transforms

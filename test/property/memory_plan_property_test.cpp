// Any set of lifetimes: buffers that are live together do not overlap, and the arena is no smaller
// than what is live and no larger than all buffers together.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <ctime>

#include "executor/program.h"

namespace autosp::executor {
namespace {

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

std::vector<ArenaBuffer> any_buffers() {
  return *rc::gen::container<std::vector<ArenaBuffer>>(rc::gen::apply(
      [](int64_t size, int first, int length) {
        return ArenaBuffer{size, first, first + length, 0};
      },
      rc::gen::inRange<int64_t>(0, 5000), rc::gen::inRange(0, 100), rc::gen::inRange(0, 50)));
}

RC_GTEST_PROP(MemoryPlan, BuffersThatLiveTogetherDoNotOverlap, ()) {
  std::vector<ArenaBuffer> buffers = any_buffers();
  const int64_t arena = assign_offsets(buffers);
  for (size_t i = 0; i < buffers.size(); ++i) {
    const ArenaBuffer& a = buffers[i];
    RC_ASSERT(a.offset % 64 == 0);
    RC_ASSERT(a.offset >= 0 && a.offset + a.size <= arena);
    for (size_t j = 0; j < i; ++j) {
      const ArenaBuffer& b = buffers[j];
      if (a.last < b.first || b.last < a.first) continue;
      RC_ASSERT(a.offset + a.size <= b.offset || b.offset + b.size <= a.offset);
    }
  }
}

RC_GTEST_PROP(MemoryPlan, TheArenaIsBetweenTheLivePeakAndTheSum, ()) {
  std::vector<ArenaBuffer> buffers = any_buffers();
  const int64_t arena = assign_offsets(buffers);
  int64_t sum = 0;
  int64_t peak = 0;
  for (int step = 0; step < 160; ++step) {
    int64_t live = 0;
    for (const ArenaBuffer& b : buffers) {
      if (b.first <= step && step <= b.last) live += aligned(b.size);
    }
    peak = std::max(peak, live);
  }
  for (const ArenaBuffer& b : buffers) sum += aligned(b.size);
  RC_ASSERT(peak <= arena && arena <= sum);
}

// The plan of a deep model takes a moment: forty thousand steps, with values kept for the backward
// pass.
TEST(MemoryPlan, GrowsLinearlyWithTheGraph) {
  std::vector<ArenaBuffer> buffers;
  const int steps = 40000;
  for (int k = 0; k < steps; ++k) {
    const bool kept = k % 20 == 0 && k < steps / 2;
    buffers.push_back({int64_t{1024} * (1 + k % 7), k, kept ? steps - k : k + 2, 0});
  }
  const std::clock_t begin = std::clock();  // of the processor, whoever else uses the machine
  assign_offsets(buffers);
  EXPECT_LT(std::clock() - begin, 20 * CLOCKS_PER_SEC);
}

// A chain in which each result dies when the next is made needs two buffers, however long it is.
TEST(MemoryPlan, AChainNeedsTwoBuffers) {
  std::vector<ArenaBuffer> buffers;
  for (int k = 0; k < 100; ++k) buffers.push_back({1024, k, k + 1, 0});
  EXPECT_EQ(assign_offsets(buffers), 2048);
}

}  // namespace
}  // namespace autosp::executor

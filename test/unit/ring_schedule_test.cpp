// Who attends to what, from intervals alone.
#include "transforms/ring_attention/ring_schedule.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace autosp::transforms {
namespace {

using shard::Interval;

// Of 4 queries and keys per member.
std::vector<Interval> blocks(int64_t members) {
  std::vector<Interval> result;
  for (int64_t k = 0; k < members; ++k) result.push_back({4 * k, 4 * k + 4});
  return result;
}

// Every query sees itself and as many keys before it and after it.
std::vector<Interval> window(int64_t queries, int64_t before, int64_t after) {
  std::vector<Interval> result;
  for (int64_t k = 0; k < queries; ++k) {
    result.push_back({std::max<int64_t>(0, k - before), std::min(queries, k + after + 1)});
  }
  return result;
}

RingSchedule schedule(const std::vector<Interval>& intervals, const std::string& why) {
  return {intervals, blocks(4), blocks(4), why};
}

TEST(RingSchedule, CausalBlocksGoNoFurtherThanTheyAreSeen) {
  const RingSchedule causal = schedule(window(16, 16, 0), "as asked");
  EXPECT_EQ(causal.steps(), 4U);
  for (size_t member = 0; member < 4; ++member) {
    for (size_t step = 0; step < 4; ++step) {
      EXPECT_EQ(causal.attends(member, step), step <= member) << member << " in step " << step;
      EXPECT_EQ(causal.holds(member, step), step <= member) << member << " in step " << step;
    }
  }
  EXPECT_EQ(causal.block(3, 1).front(), (Interval{8, 12}));
  // The last of four has 58 of 136.
  EXPECT_DOUBLE_EQ(causal.busiest_over_mean(), 58 / (136 / 4.0));
}

TEST(RingSchedule, AWindowEndsTheRoundEarly) {
  EXPECT_EQ(schedule(window(16, 2, 0), "as asked").steps(), 2U);
  EXPECT_EQ(schedule(window(16, 5, 0), "as asked").steps(), 3U);
  // To both sides: the block before comes first, the one behind last.
  EXPECT_EQ(schedule(window(16, 2, 2), "as asked").steps(), 4U);
  EXPECT_EQ(schedule({}, "as asked").steps(), 4U);
  EXPECT_EQ(schedule({}, "as asked").busiest_over_mean(), 1);
}

TEST(RingSchedule, ZigzagEvensOutCausalMasksAlone) {
  const RingSchedule causal = schedule(window(16, 16, 0), "");
  EXPECT_EQ(causal.why_in_blocks(), "");
  EXPECT_DOUBLE_EQ(causal.busiest_over_mean(), 1);
  EXPECT_EQ(causal.queries().of(0), (Positions{{0, 2}, {14, 16}}));
  EXPECT_NE(schedule(window(16, 1, 1), "").why_in_blocks(), "");
  EXPECT_NE(schedule({}, "").why_in_blocks(), "");
  EXPECT_EQ(schedule(window(16, 16, 0), "as asked").why_in_blocks(), "as asked");
}

}  // namespace
}  // namespace autosp::transforms

#include "transforms/spmd/reshard.h"

#include <gtest/gtest.h>

namespace autosp::transforms {
namespace {

using shard::AxisLayout;
using shard::Cuts;
using shard::even_cuts;
using shard::Interval;
using shard::Layout;
using shard::Mesh;

const AxisLayout kWhole = AxisLayout::replicated();
const AxisLayout kPartial = AxisLayout::partial();

AxisLayout sequence(int64_t extent, int64_t parts) {
  return AxisLayout::split({1, 0}, even_cuts(extent, parts), true);
}
AxisLayout heads(int64_t extent, int64_t parts) {
  return AxisLayout::split({2, 0}, even_cuts(extent, parts), false);
}

TEST(Reshard, SequenceToHeadsIsOneAllToAll) {
  const Mesh mesh({{"u", 4}});
  const auto steps = reshard_steps({sequence(64, 4)}, {heads(8, 4)}, mesh);
  ASSERT_EQ(steps.size(), 1U);
  EXPECT_EQ(steps[0].kind, StepKind::kAllToAll);
}

TEST(Reshard, BothSequenceAxesMoveInOneExchange) {
  const Mesh mesh({{"g", 2}, {"u", 2}});
  const AxisLayout groups = AxisLayout::split({3, 0}, even_cuts(2, 2), false);
  const auto steps = reshard_steps({sequence(64, 4), sequence(64, 4)}, {groups, heads(2, 2)}, mesh);
  ASSERT_EQ(steps.size(), 1U);
  EXPECT_EQ(steps[0].axes, (std::vector<size_t>{0, 1}));
}

TEST(Reshard, CutPointsOfBothAxesMoveTogether) {
  const Mesh mesh({{"g", 2}, {"u", 2}});
  const AxisLayout from = AxisLayout::split({1, 0}, {0, 15, 30, 45, 60}, true);
  const AxisLayout to = AxisLayout::split({1, 0}, {0, 16, 31, 46, 60}, true);
  const auto steps = reshard_steps({from, from}, {to, to}, mesh);
  ASSERT_EQ(steps.size(), 1U);
  EXPECT_EQ(steps[0].kind, StepKind::kAllToAll);
}

TEST(Reshard, GradientsOfKeysAreSummedBeforeTheyTravel) {
  // Summed over query groups on g, split by heads on u; wanted split by sequence on both.
  const Mesh mesh({{"g", 2}, {"u", 2}});
  const auto steps =
      reshard_steps({kPartial, heads(2, 2)}, {sequence(64, 4), sequence(64, 4)}, mesh);
  ASSERT_EQ(steps.size(), 2U);
  EXPECT_EQ(steps[0].kind, StepKind::kReduceScatter);
  EXPECT_EQ(steps[0].axes, (std::vector<size_t>{0}));
  EXPECT_EQ(steps[1].kind, StepKind::kAllToAll);
}

TEST(Reshard, EveryIntermediateLayoutKeepsOneRangePerRank) {
  const Mesh mesh({{"g", 2}, {"u", 2}});
  for (const Layout& from :
       {Layout{kWhole, kWhole}, Layout{kPartial, kWhole}, Layout{kWhole, kPartial}}) {
    for (const auto& step : reshard_steps(from, {sequence(61, 4), sequence(61, 4)}, mesh)) {
      for (int64_t rank = 0; rank < mesh.size(); ++rank) {
        EXPECT_NO_THROW(shard::local_range(step.to, mesh, mesh.coordinates(rank), {1, 0}, 61));
      }
    }
  }
}

TEST(Reshard, AllAxesOfAGradientAreReducedAtOnce) {
  const Mesh mesh({{"dp", 2}, {"g", 2}, {"u", 2}});
  const auto steps = reshard_steps({kPartial, kPartial, kPartial}, {kWhole, kWhole, kWhole}, mesh);
  ASSERT_EQ(steps.size(), 1U);
  EXPECT_EQ(steps[0].kind, StepKind::kAllReduce);
  EXPECT_EQ(group_of(5, steps[0].axes, mesh).size(), 8U);
}

TEST(Reshard, GroupsFollowTheMesh) {
  const Mesh mesh({{"dp", 2}, {"g", 2}, {"u", 2}});
  EXPECT_EQ(group_of(5, {2}, mesh), (std::vector<int64_t>{4, 5}));
  EXPECT_EQ(group_of(5, {1}, mesh), (std::vector<int64_t>{5, 7}));
  EXPECT_EQ(group_of(5, {0}, mesh), (std::vector<int64_t>{1, 5}));
}

TEST(Layout, LocalRangesCoverAnUnevenSequenceOnce) {
  const Mesh mesh({{"g", 2}, {"u", 4}});
  const Layout layout = {sequence(61, 8), sequence(61, 8)};
  int64_t next = 0;
  for (int64_t rank = 0; rank < mesh.size(); ++rank) {
    const Interval range = shard::local_range(layout, mesh, mesh.coordinates(rank), {1, 0}, 61);
    EXPECT_EQ(range.begin, next);
    next = range.end;
  }
  EXPECT_EQ(next, 61);
}

TEST(Layout, AnOuterAxisAloneHoldsTheUnionOfItsLeaves) {
  const Mesh mesh({{"g", 2}, {"u", 4}});
  const Layout layout = {sequence(61, 8), heads(8, 4)};
  const Interval range = shard::local_range(layout, mesh, {1, 2}, {1, 0}, 61);
  EXPECT_EQ(range, (Interval{even_cuts(61, 8)[4], 61}));
}

TEST(Layout, BytesFollowTheClosedForms) {
  const int64_t n = 1 << 20;
  EXPECT_EQ(shard::reshard_bytes(sequence(64, 4), heads(8, 4), n, 4), n * 3 / 16);
  EXPECT_EQ(shard::reshard_bytes(sequence(64, 4), kWhole, n, 4), n * 3 / 4);
  EXPECT_EQ(shard::reshard_bytes(kPartial, kWhole, n, 4), 2 * n * 3 / 4);
  EXPECT_EQ(shard::reshard_bytes(kPartial, sequence(64, 4), n, 4), n * 3 / 4);
  EXPECT_EQ(shard::reshard_bytes(kWhole, sequence(64, 4), n, 4), 0);
  EXPECT_EQ(shard::reshard_bytes(sequence(64, 4), kPartial, n, 4), shard::kImpossible);
}

}  // namespace
}  // namespace autosp::transforms

#include "shard/min_cut.h"

#include <gtest/gtest.h>

namespace autosp::shard {
namespace {

TEST(MinCut, CutsTheCheapestEdges) {
  MinCut cut;
  const int a = cut.add_vertex();
  const int b = cut.add_vertex();
  cut.add_edge(cut.source(), a, 10);
  cut.add_edge(a, b, 3);
  cut.add_edge(b, cut.sink(), 10);
  const auto result = cut.solve();
  EXPECT_EQ(result.value, 3);
  EXPECT_FALSE(result.on_sink_side[static_cast<size_t>(a)]);
  EXPECT_TRUE(result.on_sink_side[static_cast<size_t>(b)]);
}

TEST(MinCut, ParallelEdgesAddUp) {
  MinCut cut;
  const int a = cut.add_vertex();
  cut.add_edge(cut.source(), a, 2);
  cut.add_edge(cut.source(), a, 2);
  cut.add_edge(a, cut.sink(), 100);
  EXPECT_EQ(cut.solve().value, 4);
}

TEST(MinCut, TiesFallToTheSourceSide) {
  MinCut cut;
  const int a = cut.add_vertex();
  cut.add_edge(cut.source(), a, 5);
  cut.add_edge(a, cut.sink(), 5);
  EXPECT_FALSE(cut.solve().on_sink_side[static_cast<size_t>(a)]);
}

TEST(MinCut, AnUnconnectedVertexStaysWithTheSource) {
  MinCut cut;
  const int a = cut.add_vertex();
  EXPECT_FALSE(cut.solve().on_sink_side[static_cast<size_t>(a)]);
}

}  // namespace
}  // namespace autosp::shard

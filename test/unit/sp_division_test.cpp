// How many ranks go over KV heads, query-head groups and query positions.
#include "shard/sp_division.h"

#include <gtest/gtest.h>

#include <functional>

#include "base/error.h"

namespace autosp::shard {
namespace {

using Division = std::optional<SpDivision>;

TEST(SpDivision, TakesKvHeadsThenGroups) {
  const auto divided = [](int64_t sp, int64_t kv_heads, int64_t groups) {
    return divide_sp(sp, {.kv_heads = kv_heads, .head_groups = groups});
  };
  EXPECT_EQ(divided(4, 8, 1), (Division{{.u = 4}}));
  EXPECT_EQ(divided(8, 2, 4), (Division{{.g = 4, .u = 2}}));
  EXPECT_EQ(divided(4, 3, 2), (Division{{.g = 2, .u = 2}}));
  EXPECT_EQ(divided(3, 2, 4), (Division{{.g = 3, .u = 1}}));
  EXPECT_EQ(divided(6, 1, 8), (Division{{.g = 6, .u = 1}}));
}

TEST(SpDivision, PutsTheRestOnTheQueries) {
  EXPECT_EQ(divide_sp(5, {.kv_heads = 4, .head_groups = 2}), (Division{{.r = 5}}));
  EXPECT_EQ(divide_sp(7, {.kv_heads = 2, .head_groups = 4}), (Division{{.r = 7}}));
  EXPECT_EQ(divide_sp(16, {.kv_heads = 2, .head_groups = 4}), (Division{{.r = 2, .g = 4, .u = 2}}));
  EXPECT_EQ(divide_sp(16, {.kv_heads = 8}), (Division{{.r = 2, .u = 8}}));
  EXPECT_EQ(divide_sp(6, {.kv_heads = 1}), (Division{{.r = 6}}));
  // Every division keeps each query head once per share of the queries.
  for (int64_t sp = 1; sp <= 64; ++sp) {
    const auto division = divide_sp(sp, {.kv_heads = 3, .head_groups = 5});
    ASSERT_TRUE(division) << sp;
    EXPECT_EQ(division->r * division->g * division->u, sp);
    EXPECT_LE(division->u, 3);
    EXPECT_LE(division->g, 5);
  }
}

// 8 heads over 7 ranks would leave one with two: 2 heads for half of the queries are more work than
// 4 for a seventh.
TEST(SpDivision, BalancesWorkBeforeItSavesTraffic) {
  EXPECT_EQ(divide_sp(14, {.kv_heads = 8}), (Division{{.r = 7, .u = 2}}));
}

TEST(SpDivision, WithoutQueriesThereMayBeNone) {
  const AttentionSizes sizes{.kv_heads = 2, .head_groups = 4, .splits_queries = false};
  EXPECT_FALSE(divide_sp(5, sizes).has_value());
  EXPECT_FALSE(divide_sp(16, sizes).has_value());
  EXPECT_TRUE(divide_sp(8, sizes).has_value());
}

TEST(SpDivision, WithoutAttentionIsTheSequenceAlone) {
  const AttentionSizes none{.found = false, .splits_queries = false};
  EXPECT_EQ(divide_sp(7, none), (Division{{.u = 7}}));
  EXPECT_EQ(requested_division({{"u", 7}}, 7, none), (SpDivision{.u = 7}));
}

TEST(SpDivision, ListsTheSizesThatDivideTheHeads) {
  EXPECT_EQ(sp_by_heads_alone({.kv_heads = 4, .head_groups = 2}),
            (std::vector<int64_t>{1, 2, 3, 4, 6, 8}));
  EXPECT_EQ(sp_by_heads_alone({.kv_heads = 8}), (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
}

std::string message_of(const std::map<std::string, int64_t>& mesh, int64_t sp,
                       const AttentionSizes& sizes) {
  try {
    requested_division(mesh, sp, sizes);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(SpMesh, IsTakenAsGiven) {
  const AttentionSizes sizes{.kv_heads = 4, .head_groups = 2};
  EXPECT_EQ(requested_division({{"u", 4}, {"g", 2}, {"r", 2}}, 16, sizes),
            (SpDivision{.r = 2, .g = 2, .u = 4}));
  EXPECT_EQ(requested_division({{"r", 4}}, 4, sizes), (SpDivision{.r = 4}));
}

TEST(SpMesh, ErrorsSayWhatWouldWork) {
  const AttentionSizes sizes{.kv_heads = 4, .head_groups = 2};
  const auto expect = [&](const std::map<std::string, int64_t>& mesh, int64_t sp,
                          const AttentionSizes& given, const std::vector<std::string>& parts) {
    const std::string message = message_of(mesh, sp, given);
    for (const std::string& part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << part << " in:\n" << message;
    EXPECT_NE(message.find("note: "), std::string::npos) << message;
    EXPECT_NE(message.find("help: "), std::string::npos) << message;
  };
  expect({{"u", 4}, {"r", 3}}, 8, sizes, {"r=3,g=1,u=4 has 12 ranks", "r=1,g=2,u=4"});
  expect({{"u", 8}}, 8, sizes, {"attention has 4 KV heads", "8 query heads are 4 KV heads x 2"});
  expect({{"g", 4}, {"u", 2}}, 8, sizes, {"attention has 2 query heads per KV head"});
  expect({{"h", 8}}, 8, sizes, {"names the axis 'h'"});
  expect({{"u", 0}}, 8, sizes, {"gives axis u the size 0"});
  expect({{"r", 8}}, 8, {.splits_queries = false}, {"no attention was found"});
}

}  // namespace
}  // namespace autosp::shard

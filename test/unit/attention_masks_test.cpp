// Known masks, taken apart entry by entry.
#include "transforms/fuse_attention/masks.h"

#include <gtest/gtest.h>

namespace autosp::transforms::fusion {
namespace {

using Entries = std::vector<bool>;

// Rows of '#' (seen) and '.' (hidden).
Entries entries(const std::vector<std::string>& rows) {
  Entries result;
  for (const std::string& row : rows) {
    for (const char c : row) result.push_back(c == '#');
  }
  return result;
}

std::optional<RowIntervals> intervals_of(const std::vector<std::string>& rows) {
  return find_row_intervals(entries(rows), static_cast<int64_t>(rows.size()),
                            static_cast<int64_t>(rows[0].size()));
}

// What the intervals and the key vector say, written out again.
std::vector<std::string> drawn(const RowIntervals& found) {
  std::vector<std::string> rows;
  for (size_t i = 0; i < found.begin.size(); ++i) {
    rows.emplace_back();
    for (size_t j = 0; j < found.keys.size(); ++j) {
      const auto key = static_cast<int64_t>(j);
      const bool seen = found.begin[i] <= key && key < found.end[i] && found.keys[j] != 0;
      rows.back().push_back(seen ? '#' : '.');
    }
  }
  return rows;
}

TEST(AttentionMasks, RowIntervalsSayTheSame) {
  const std::vector<std::vector<std::string>> masks = {
      {"#...", "##..", "###.", "####"},  // causal
      {"#...", "##..", ".##.", "..##"},  // window
      {"##..", "##..", "..##", "..##"},  // documents
      {"#.#.", "#.#.", "#.#.", "#.#."},  // key vector
      {"#...", "#...", "#.#.", "#.##"},  // causal and a key vector
      {"....", "####", "....", "####"},  // rows without a key
      {"####", "###."}};                 // more keys than queries
  for (const auto& mask : masks) {
    const auto found = intervals_of(mask);
    ASSERT_TRUE(found.has_value()) << mask[1];
    EXPECT_EQ(drawn(*found), mask);
  }
}

TEST(AttentionMasks, GapsThatAreNoKeyVectorAreNoIntervals) {
  EXPECT_FALSE(intervals_of({"####", "#.##", "####", "####"}).has_value());
  EXPECT_FALSE(intervals_of({"#..#", "##..", ".##.", "..##"}).has_value());
}

TEST(AttentionMasks, ComparisonsOfVectorsAreIntervals) {
  const std::vector<double> key = {0, 0, 1, 1, 3};
  const std::vector<double> query = {0, 1, 2};
  const auto check = [&](Comparison comparison, const std::vector<std::string>& want) {
    const auto found = compare_vectors(key, comparison, query);
    ASSERT_TRUE(found.has_value());
    std::vector<std::string> got;
    for (size_t i = 0; i < query.size(); ++i) {
      got.emplace_back();
      for (int64_t j = 0; j < 5; ++j) {
        got.back().push_back(found->begin[i] <= j && j < found->end[i] ? '#' : '.');
      }
    }
    EXPECT_EQ(got, want);
  };
  check(Comparison::kLess, {".....", "##...", "####."});
  check(Comparison::kLessOrEqual, {"##...", "####.", "####."});
  check(Comparison::kGreater, {"..###", "....#", "....#"});
  check(Comparison::kGreaterOrEqual, {"#####", "..###", "....#"});
  check(Comparison::kEqual, {"##...", "..##.", "....."});
}

TEST(AttentionMasks, FallingKeysAreNoInterval) {
  EXPECT_FALSE(compare_vectors({0, 2, 1}, Comparison::kLess, {1}).has_value());
}

TEST(AttentionMasks, IntervalsHaveNames) {
  EXPECT_EQ(name_intervals({0, 0, 0}, {3, 3, 3}, 3, 3), "full");
  EXPECT_EQ(name_intervals({0, 0, 0}, {1, 2, 3}, 3, 3), "causal");
  EXPECT_EQ(name_intervals({0, 0, 1}, {1, 2, 3}, 3, 3), "causal, window 2");
  EXPECT_EQ(name_intervals({0, 0}, {2, 3}, 2, 3), "causal");
  EXPECT_EQ(name_intervals({0, 1, 1}, {1, 2, 3}, 3, 3), "intervals");
  EXPECT_EQ(name_intervals({0, 0, 0}, {2, 3, 3}, 3, 3), "intervals");
}

TEST(AttentionMasks, BiasesOfDistanceAreKeyVectors) {
  // slope * (j - i), causal.
  std::vector<double> matrix;
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) matrix.push_back(j <= i ? 0.5 * (j - i) : -99);
  }
  const auto vector = find_key_vector(matrix, entries({"#...", "##..", "###.", "####"}), 4, 4);
  ASSERT_TRUE(vector.has_value());
  for (size_t j = 0; j < 4; ++j) EXPECT_DOUBLE_EQ((*vector)[j] - (*vector)[0], 0.5 * double(j));
  // |j - i| without a mask is none.
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t j = 0; j < 4; ++j) {
      matrix[static_cast<size_t>(i * 4 + j)] = static_cast<double>(std::abs(j - i));
    }
  }
  EXPECT_FALSE(find_key_vector(matrix, Entries(16, true), 4, 4).has_value());
}

TEST(AttentionMasks, RowsThatShareNoKeyMayDifferByAnything) {
  const auto vector = find_key_vector({1, 2, 0, 0, 0, 0, 7, 9}, entries({"##..", "..##"}), 2, 4);
  ASSERT_TRUE(vector.has_value());
  EXPECT_DOUBLE_EQ((*vector)[1] - (*vector)[0], 1);
  EXPECT_DOUBLE_EQ((*vector)[3] - (*vector)[2], 2);
}

}  // namespace
}  // namespace autosp::transforms::fusion

// Masks: known ones taken apart entry by entry, and what was read in one compared with it.
#include "transforms/fuse_attention/masks.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/attention_layers.h"
#include "transforms/fuse_attention/mask_check.h"
#include "transforms/fuse_attention/region_plan.h"
#include "transforms/pipeline.h"

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

TEST(AttentionMasks, QueriesMayRiseAndFall) {
  const std::vector<double> key = {0, 0, 1, 1, 3};
  for (const Comparison comparison :
       {Comparison::kLess, Comparison::kLessOrEqual, Comparison::kGreater,
        Comparison::kGreaterOrEqual, Comparison::kEqual}) {
    const std::vector<double> query = {1, 2, 0, 5, -1, 1, 1, 3};
    const auto found = compare_vectors(key, comparison, query, 0.5);
    ASSERT_TRUE(found.has_value());
    for (size_t i = 0; i < query.size(); ++i) {
      for (size_t j = 0; j < key.size(); ++j) {
        const auto at = static_cast<int64_t>(j);
        EXPECT_EQ(found->begin[i] <= at && at < found->end[i],
                  holds(key[j], comparison, query[i] + 0.5));
      }
    }
  }
  EXPECT_FALSE(compare_vectors(key, Comparison::kEqual, {NAN}).has_value());
}

TEST(AttentionMasks, EqualVectorsAreOne) {
  MaskMemo memo;
  EXPECT_EQ(memo.shared({1, 2, 3}), memo.shared({1, 2, 3}));
  EXPECT_NE(memo.shared({1, 2, 3}), memo.shared({1, 2}));
  const SharedNumbers key = memo.repeated(1, 4);
  EXPECT_EQ(key, memo.repeated(1, 4));
  const auto all = memo.compare(key, Comparison::kEqual, key, 0);
  EXPECT_EQ(*all.second, (std::vector<int64_t>{4, 4, 4, 4}));
  EXPECT_EQ(memo.compare(key, Comparison::kLessOrEqual, key, 0), all);
}

TEST(AttentionMasks, FallingKeysAreNoInterval) {
  EXPECT_FALSE(compare_vectors({0, 2, 1}, Comparison::kLess, {1}).has_value());
}

TEST(AttentionMasks, IntervalsHaveNames) {
  EXPECT_EQ(name_intervals({0, 0, 0}, {3, 3, 3}, 3, 3), "full");
  EXPECT_EQ(name_intervals({0, 0, 0}, {1, 2, 3}, 3, 3), "causal");
  EXPECT_EQ(name_intervals({0, 0, 1}, {1, 2, 3}, 3, 3), "causal, window 2");
  EXPECT_EQ(name_intervals({0, 0, 1, 2}, {2, 3, 4, 4}, 4, 4), "1 position to both sides");
  EXPECT_EQ(name_intervals({0, 0, 1, 2}, {3, 4, 4, 4}, 4, 4), "intervals");
  EXPECT_EQ(name_intervals({0, 0, 1, 1}, {2, 3, 4, 4}, 4, 4), "intervals");
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

// Beside a sink, what differs from row to row counts.
TEST(AttentionMasks, RowsThatCountMustBeAlike) {
  const Entries all(4, true);
  EXPECT_FALSE(find_key_vector({1, 2, 2, 3}, all, 2, 2, true).has_value());
  EXPECT_EQ(find_key_vector({1, 2, 1, 2}, all, 2, 2, true), (std::vector<double>{1, 2}));
}

// The one attention of a layer, analysed.
class Analysed {
 public:
  explicit Analysed(const test::LayerOptions& options)
      : graph_(run_passes(test::attention_layer(options))),
        roles_(shard::detect_roles(graph_)),
        analysis_(graph_, roles_.is_parameter),
        home_(shard::find_home(analysis_, roles_)),
        facts_(analysis_, home_, roles_.is_parameter),
        plan_(plan_region(facts_, find_regions(facts_).at(0), memo_)) {}

  size_t terms() const { return plan_->terms.size(); }
  TermParts parts(size_t t) {
    return take_apart(facts_, plan_->cutout, *plan_->factors, plan_->canonical, plan_->terms.at(t),
                      plan_->meaning.terms.at(t), {}, memo_);
  }
  bool accepts(size_t t, const TermParts& parts) const {
    try {
      check_parts(facts_, plan_->cutout, *plan_->factors, plan_->canonical, plan_->terms.at(t),
                  plan_->meaning.terms.at(t), parts, false);
      return true;
    } catch (const Refused&) {
      return false;
    }
  }

 private:
  ir::Graph graph_;
  shard::Roles roles_;
  shard::FactorAnalysis analysis_;
  shard::HomeClasses home_;
  GraphFacts facts_;
  MaskMemo memo_;
  std::unique_ptr<RegionPlan> plan_;
};

// Copies of a mask's parts with one mistake each.
std::vector<TermParts> mistakes(const TermParts& right) {
  std::vector<TermParts> result;
  for (size_t k = 0; k < right.literals.size(); ++k) {
    result.push_back(right);
    result.back().literals.erase(result.back().literals.begin() + static_cast<std::ptrdiff_t>(k));
    TermParts wrong = right;
    Literal& literal = wrong.literals[k];
    literal.positive = !literal.positive;
    literal.offset += 1;
    std::swap(literal.begin, literal.end);
    if (literal.kind != Literal::Kind::kSameSegment) result.push_back(wrong);
    if (literal.condition) {
      wrong.literals[k] = right.literals[k];
      wrong.literals[k].condition->number += 1;
      result.push_back(wrong);
    }
  }
  for (size_t k = 0; k < right.biases.size(); ++k) {
    result.push_back(right);
    result.back().biases[k].factor *= 1.01;
  }
  return result;
}

TEST(AttentionMasks, PartsThatSayAnotherMaskAreRefused) {
  using test::LayerMask;
  for (const LayerMask mask :
       {LayerMask::kCausal, LayerMask::kWindow, LayerMask::kBand, LayerMask::kLeftPadding,
        LayerMask::kSegments, LayerMask::kZeroDeadRows, LayerMask::kDistances,
        LayerMask::kPositions, LayerMask::kKeysOfOne, LayerMask::kBatchBits, LayerMask::kPrefix}) {
    for (const int64_t sequence : {12, 1024}) {
      SCOPED_TRACE(fmt::format("mask {}, sequence {}", static_cast<int>(mask), sequence));
      Analysed layer({.sequence = sequence, .mask = mask});
      for (size_t t = 0; t < layer.terms(); ++t) {
        const TermParts right = layer.parts(t);
        EXPECT_TRUE(layer.accepts(t, right));
        const auto wrong = mistakes(right);
        EXPECT_FALSE(wrong.empty());
        for (size_t k = 0; k < wrong.size(); ++k) EXPECT_FALSE(layer.accepts(t, wrong[k])) << k;
      }
    }
  }
}

}  // namespace
}  // namespace autosp::transforms::fusion

#include "shard/atoms.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace autosp::shard {
namespace {

std::vector<int64_t> sizes(const Atoms& atoms, const AtomList& list) {
  std::vector<int64_t> result;
  for (AtomId atom : atoms.resolve(list)) result.push_back(atoms.size(atom));
  return result;
}

TEST(Atoms, EqualSizesBecomeOneAtom) {
  Atoms atoms;
  const AtomList a = {atoms.make(3), atoms.make(40)};
  const AtomList b = {atoms.make(3), atoms.make(40)};
  ASSERT_TRUE(atoms.unify(a, b));
  EXPECT_EQ(atoms.resolve(a), atoms.resolve(b));
}

TEST(Atoms, TheLargerOfTwoIsSplit) {
  Atoms atoms;
  const AtomList hidden = {atoms.make(96)};
  const AtomList heads = {atoms.make(8), atoms.make(12)};
  ASSERT_TRUE(atoms.unify(hidden, heads));
  EXPECT_THAT(sizes(atoms, hidden), testing::ElementsAre(8, 12));
  EXPECT_EQ(atoms.resolve(hidden), atoms.resolve(heads));
}

TEST(Atoms, ASplitReachesEveryListThatHoldsTheAtom) {
  Atoms atoms;
  const AtomList x = {atoms.make(96)};
  const AtomList y = {atoms.make(96)};
  ASSERT_TRUE(atoms.unify(x, y));
  ASSERT_TRUE(atoms.unify(y, {atoms.make(4), atoms.make(24)}));
  ASSERT_TRUE(atoms.unify(x, {atoms.make(4), atoms.make(2), atoms.make(12)}));
  EXPECT_THAT(sizes(atoms, y), testing::ElementsAre(4, 2, 12));
}

TEST(Atoms, BatchTimesSequenceDividesAtTheBatch) {
  Atoms atoms;
  const AtomId batch = atoms.make(3);
  const AtomId sequence = atoms.make(40);
  const AtomList merged = {atoms.make(120)};
  ASSERT_TRUE(atoms.unify({batch, sequence}, merged));
  EXPECT_EQ(atoms.resolve(merged), (AtomList{batch, sequence}));
}

TEST(Atoms, BoundariesThatDoNotMeetAreRefusedAndChangeNothing) {
  Atoms atoms;
  const AtomList a = {atoms.make(4), atoms.make(6)};
  const AtomList b = {atoms.make(6), atoms.make(4)};
  EXPECT_FALSE(atoms.unify(a, b));
  EXPECT_THAT(sizes(atoms, a), testing::ElementsAre(4, 6));
  EXPECT_THAT(sizes(atoms, b), testing::ElementsAre(6, 4));
  EXPECT_NE(atoms.resolve(a)[0], atoms.resolve(b)[0]);
}

TEST(Atoms, EqualExtentsAloneRelateNothing) {
  Atoms atoms;
  const AtomId sequence = atoms.make(64);
  const AtomId hidden = atoms.make(64);
  EXPECT_NE(atoms.class_of(sequence), atoms.class_of(hidden));
}

TEST(Atoms, ClassesJoinDifferentExtents) {
  Atoms atoms;
  const AtomId tokens = atoms.make(64);
  const AtomId shifted = atoms.make(63);
  atoms.unite_classes(tokens, shifted);
  EXPECT_EQ(atoms.class_of(tokens), atoms.class_of(shifted));
}

}  // namespace
}  // namespace autosp::shard

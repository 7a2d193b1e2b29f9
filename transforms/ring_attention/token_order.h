// Which positions of a sequence each member of a ring attends for.
//
// Outside a ring every member has a block of consecutive positions. Under a causal mask the block
// at the end sees all keys and the block at the start next to none; in zigzag order a member takes
// half a block from the front and one from the back instead, and all see about as many. Four
// members:
//
//   halves of blocks    0 1   2 3   4 5   6 7
//   blocks              A A   B B   C C   D D      the member that attends for each half
//   zigzag              A B   C D   D C   B A
//
// Positions stay in ascending order on a member, so that an interval of keys of the whole sequence
// is an interval of a member's keys, too.
#pragma once

#include <vector>

#include "shard/layout.h"

namespace autosp::transforms {

// Ascending intervals, none of them empty.
using Positions = std::vector<shard::Interval>;

int64_t count(const Positions& positions);
// How many of them are smaller than a bound.
int64_t count_below(const Positions& positions, int64_t bound);

class TokenOrder {
 public:
  TokenOrder() = default;
  // `blocks`: those that the members have, one after the other, none of them empty.
  static TokenOrder in_blocks(std::vector<shard::Interval> blocks);
  static TokenOrder in_zigzag(std::vector<shard::Interval> blocks);

  size_t members() const { return blocks_.size(); }
  int64_t extent() const { return blocks_.back().end; }  // of the whole sequence
  const shard::Interval& block(size_t member) const { return blocks_[member]; }
  const Positions& of(size_t member) const { return positions_[member]; }

  // The positions in one member's block that another (or the same one) attends for: where they are
  // in the block, and where among those that it attends for. Both are empty where there are none.
  struct Share {
    shard::Interval in_block;
    shard::Interval in_order;
  };
  Share share(size_t holder, size_t attendant) const;

 private:
  std::vector<shard::Interval> blocks_;
  std::vector<Positions> positions_;  // by member
};

}  // namespace autosp::transforms

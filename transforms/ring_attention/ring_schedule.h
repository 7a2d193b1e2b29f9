// Which member of a ring attends to which block of keys in which step.
//
// The ranks along axis r are the members of a ring, and each owns a block of keys and values. In
// step s a member holds the block of the member s places before it; then it hands the block on to
// the next one. Known intervals of keys (causal masks, windows) tell before the run which blocks a
// member sees nothing of: it computes nothing then, and a block goes no further than the last
// member that sees some of it. All members take part in every exchange, though, be it with nothing.
//
//   step            0    1    2    3        causal, four members: owner of the block that is used
//   member 0        0    .    .    .
//   member 1        1    0    .    .
//   member 2        2    1    0    .
//   member 3        3    2    1    0
//
// In zigzag order (token_order.h) the blocks are dealt out first, with the queries and all that
// belongs to them: then every member attends in every step, to about as many keys. What it makes of
// them is returned in the end, so that outside the ring nothing is in another place.
#pragma once

#include <string>
#include <vector>

#include "transforms/ring_attention/token_order.h"

namespace autosp::transforms {

class RingSchedule {
 public:
  // `intervals`: known intervals of keys by query, for one sample after the other or all at once;
  // empty: none are known. In blocks where there is a reason to be (`why_in_blocks`).
  RingSchedule(const std::vector<shard::Interval>& intervals,
               const std::vector<shard::Interval>& key_blocks,
               const std::vector<shard::Interval>& query_blocks, std::string why_in_blocks);

  size_t members() const { return keys_.members(); }
  // Steps in which anybody attends to anything; at least 1.
  size_t steps() const { return steps_; }
  // Whose block a member holds in a step.
  size_t owner(size_t member, size_t step) const { return (member + members() - step) % members(); }
  size_t next(size_t member, size_t distance = 1) const { return (member + distance) % members(); }
  // Every member attends to its own block, which step 0 is.
  bool attends(size_t member, size_t step) const { return attends_[member][step]; }
  // Whether the block of that step comes to the member at all, to be used there or handed on.
  bool holds(size_t member, size_t step) const;
  // Positions of the keys of the block that a member holds in a step.
  const Positions& block(size_t member, size_t step) const { return keys_.of(owner(member, step)); }
  // Keys that the member with most attends to, over the mean of all; 1 where none are known.
  double busiest_over_mean() const { return busiest_over_mean_; }

  const TokenOrder& keys() const { return keys_; }
  const TokenOrder& queries() const { return queries_; }
  // Why blocks are not dealt out in zigzag order, in a few words; empty: they are. Known intervals
  // have to give the busiest member less to do that way.
  const std::string& why_in_blocks() const { return why_in_blocks_; }

 private:
  void choose_order(const std::vector<shard::Interval>& intervals,
                    const std::vector<shard::Interval>& key_blocks,
                    const std::vector<shard::Interval>& query_blocks);
  void find_attended(const std::vector<shard::Interval>& intervals);

  TokenOrder keys_;
  TokenOrder queries_;
  std::string why_in_blocks_;
  double busiest_over_mean_ = 1;
  std::vector<std::vector<bool>> attends_;  // by member and step
  size_t steps_ = 1;
};

}  // namespace autosp::transforms

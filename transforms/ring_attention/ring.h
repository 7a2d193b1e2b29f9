// The ring of one fused attention, or of its gradient: which rank attends to which block of keys in
// which step, and what passes between the ranks.
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
#pragma once

#include <string>
#include <vector>

#include "transforms/spmd/program.h"

namespace autosp::transforms {

// One exchange, in which all members of a ring take part.
struct RingTransfer {
  enum class What : uint8_t {
    kKey,            // block handed on, to be used in `step`
    kValue,          // likewise
    kKeyGradient,    // from whoever attended to a block in `step` to its owner
    kValueGradient,  // likewise
    kUnseen,         // a sum over all members, for rows that see no key (unseen_rows.h)
  };
  What what = What::kKey;
  size_t step = 0;  // at least 1; of kUnseen, which of the sums
  // Keys or values, or their gradient, as the operator has them; of kUnseen, values.
  PlacedId value;
  std::string node;  // name of its node in every rank graph
};

class Ring {
 public:
  // `compute` is on a ring in the program's plan.
  Ring(const SpmdProgram& program, const Compute& compute);

  size_t members() const { return keys_.size(); }
  // Steps in which anybody attends to anything; at least 1.
  size_t steps() const { return steps_; }
  size_t member_of(int64_t rank) const;
  // The ranks of the ring that `rank` is in, by member.
  std::vector<int64_t> ranks_with(int64_t rank) const;

  // Whose block a member holds in a step.
  size_t owner(size_t member, size_t step) const { return (member + members() - step) % members(); }
  size_t next(size_t member, size_t distance = 1) const { return (member + distance) % members(); }
  // Every member attends to its own block, which step 0 is.
  bool attends(size_t member, size_t step) const { return attends_[member][step]; }
  // Whether the block of that step comes to the member at all, to be used there or handed on.
  bool holds(size_t member, size_t step) const;

  // Positions of a member's own keys.
  const shard::Interval& keys(size_t member) const { return keys_[member]; }
  int64_t key_extent() const { return keys_.back().end; }

  // In the order in which every member executes them: sums first, a step's keys and values before
  // the step before it, its gradients behind it.
  const std::vector<RingTransfer>& transfers() const { return transfers_; }
  // Null where there is none.
  const RingTransfer* find(RingTransfer::What what, size_t step) const;
  // Whether there may be rows that see no key and weigh all keys alike.
  bool has_unseen_rows() const { return unseen_; }
  // Bytes that a rank sends in a transfer.
  int64_t bytes_sent(const RingTransfer& transfer, int64_t rank) const;

 private:
  void find_ranges();
  void find_attended();
  void list_transfers();
  std::vector<ir::Shape> unseen_shapes(int64_t rank) const;
  PlacedId value_of(RingTransfer::What what) const;
  void add(RingTransfer::What what, size_t step);

  const SpmdProgram& program_;
  const Compute& compute_;
  shard::AttentionOperands at_;
  size_t axis_;                             // of the mesh
  std::vector<shard::Interval> keys_;       // by member
  std::vector<shard::Interval> queries_;    // likewise
  std::vector<std::vector<bool>> attends_;  // by member and step
  size_t steps_ = 1;
  bool unseen_ = false;
  std::vector<RingTransfer> transfers_;
};

// Bytes that the exchanges and sums of a ring take on a rank beside operands and results, about.
int64_t ring_working_bytes(const SpmdProgram& program, const Compute& compute, int64_t rank);

}  // namespace autosp::transforms

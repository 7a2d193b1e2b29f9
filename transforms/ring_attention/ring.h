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
//
// In zigzag order (token_order.h) the blocks are dealt out first, with the queries and all that
// belongs to them: then every member attends in every step, to about as many keys. What it makes of
// them is returned in the end, so that outside the ring nothing is in another place.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "transforms/ring_attention/token_order.h"
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
    kDeal,           // an operand, to those who attend for it
    kReturn,         // a result, to those whose it is
  };
  What what = What::kKey;
  // At least 1. Of kUnseen, which of the sums; of kDeal and kReturn, which operand or result.
  size_t step = 0;
  // Keys or values, or their gradient, as the operator has them; of kUnseen, values.
  PlacedId value;
  std::string node;  // name of its node in every rank graph
};

class Ring {
 public:
  // `compute` is on a ring in the program's plan.
  Ring(const SpmdProgram& program, const Compute& compute);

  size_t members() const { return keys_.members(); }
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

  // Positions of the keys that are a member's block.
  const Positions& keys(size_t member) const { return keys_.of(member); }
  int64_t key_extent() const { return keys_.extent(); }

  // Whether blocks are dealt out in zigzag order: as the plan asks, where known intervals of keys
  // (causal masks) give the busiest member less to do that way.
  bool is_zigzag() const { return why_in_blocks_.empty(); }
  // Why not, in a few words.
  const std::string& why_in_blocks() const { return why_in_blocks_; }

  // The dimension of an operand or a result that runs over positions which are dealt out, in that
  // order; nullopt where none does, and of an absent operand.
  struct PositionDim {
    size_t dim;
    const TokenOrder& order;
  };
  std::optional<PositionDim> operand_positions(size_t operand) const;
  std::optional<PositionDim> result_positions(size_t result) const;

  // In the order in which every member executes them: operands dealt out and sums first, a step's
  // keys and values before the step before it, its gradients behind it, results returned at last.
  const std::vector<RingTransfer>& transfers() const { return transfers_; }
  // Null where there is none.
  const RingTransfer* find(RingTransfer::What what, size_t step) const;
  // Whether there may be rows that see no key and weigh all keys alike.
  bool has_unseen_rows() const { return unseen_; }
  // Bytes that a rank sends in a transfer.
  int64_t bytes_sent(const RingTransfer& transfer, int64_t rank) const;

 private:
  void find_intervals();
  void choose_order();
  std::string why_no_zigzag(const TokenOrder& zigzag) const;
  int64_t keys_seen_by_busiest(const TokenOrder& queries) const;
  void find_attended();
  shard::Interval keys_seen_by(const shard::Interval& queries) const;
  void list_transfers();
  std::vector<ir::Shape> unseen_shapes(int64_t rank) const;
  PlacedId value_of(RingTransfer::What what, size_t step) const;
  void add(RingTransfer::What what, size_t step);

  const SpmdProgram& program_;
  const Compute& compute_;
  shard::AttentionOperands at_;
  size_t axis_;  // of the mesh
  // Known intervals of keys by query, for one sample after the other or all at once; empty: none.
  std::vector<shard::Interval> intervals_;
  TokenOrder keys_;
  TokenOrder queries_;
  std::string why_in_blocks_;
  std::vector<std::vector<bool>> attends_;  // by member and step
  size_t steps_ = 1;
  bool unseen_ = false;
  std::vector<RingTransfer> transfers_;
};

// Of a program's rings: how many there are, how many in zigzag order, why the others are not.
struct ZigzagUse {
  int64_t rings = 0;
  int64_t zigzag = 0;
  std::set<std::string> why_in_blocks;
};
ZigzagUse zigzag_use(const SpmdProgram& program);

// Bytes that the exchanges and sums of a ring take on a rank beside operands and results, about.
int64_t ring_working_bytes(const SpmdProgram& program, const Compute& compute, int64_t rank);

}  // namespace autosp::transforms

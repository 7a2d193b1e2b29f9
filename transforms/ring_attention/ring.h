// The ring of one fused attention, or of its gradient (ring_schedule.h), and what passes between
// its ranks.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "transforms/ring_attention/ring_schedule.h"
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

  const RingSchedule& schedule() const { return *schedule_; }
  size_t members() const { return schedule_->members(); }
  size_t member_of(int64_t rank) const;
  // The ranks of the ring that `rank` is in, by member.
  std::vector<int64_t> ranks_with(int64_t rank) const;
  bool is_zigzag() const { return schedule_->why_in_blocks().empty(); }

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
  void list_transfers();
  std::vector<ir::Shape> unseen_shapes(int64_t rank) const;
  PlacedId value_of(RingTransfer::What what, size_t step) const;
  void add(RingTransfer::What what, size_t step);

  const SpmdProgram& program_;
  const Compute& compute_;
  shard::AttentionOperands at_;
  size_t axis_;  // of the mesh
  std::shared_ptr<const RingSchedule> schedule_;
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

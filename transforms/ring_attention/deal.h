// Operands of attention on their way to the members of a ring that attend for them, and results on
// their way back (token_order.h).
#pragma once

#include <string>
#include <vector>

#include "ir/builder.h"
#include "transforms/ring_attention/ring.h"

namespace autosp::transforms {

// A local operand that is a constant: what the rank attends for of it, without an exchange.
ir::Tensor dealt_constant(const SpmdProgram& program, const Compute& compute, const Ring& ring,
                          size_t operand, int64_t rank);

// Both directions as a rank executes them: one exchange each. `node` names it.
class Dealer {
 public:
  Dealer(const Ring& ring, int64_t rank, ir::Builder& build)
      : ring_(ring), group_(ring.ranks_with(rank)), me_(ring.member_of(rank)), build_(build) {}

  ValueId deal(const Ring::PositionDim& positions, ValueId block, const std::string& node);
  ValueId give_back(const Ring::PositionDim& positions, ValueId result, const std::string& node);

 private:
  // By member, along the dimension: positions of this member's block that the other attends for, in
  // the block; and those of the other's block that this one attends for, in its order.
  std::vector<shard::Interval> held(const TokenOrder& order) const;
  std::vector<shard::Interval> attended(const TokenOrder& order) const;

  const Ring& ring_;
  std::vector<int64_t> group_;
  size_t me_;
  ir::Builder& build_;
};

// Both directions in one graph of all ranks; `held` is by member, and so is what `attendant` or
// `holder` counts.
ValueId emulate_deal(const Ring::PositionDim& positions, const std::vector<ValueId>& held,
                     size_t attendant, ir::Builder& build);
ValueId emulate_return(const Ring::PositionDim& positions, const std::vector<ValueId>& attended,
                       size_t holder, ir::Builder& build);

}  // namespace autosp::transforms

#include "transforms/ring_attention/deal.h"

#include <map>
#include <ranges>

#include "transforms/ring_attention/exchange_along.h"
#include "transforms/spmd/localize.h"

namespace autosp::transforms {

using shard::Interval;

ir::Tensor dealt_constant(const SpmdProgram& program, const Compute& compute, const Ring& ring,
                          size_t operand, int64_t rank) {
  const auto [dim, order] = *ring.operand_positions(operand);
  const size_t attendant = ring.member_of(rank);
  const std::vector<int64_t> group = ring.ranks_with(rank);
  std::vector<ir::Tensor> parts;
  for (size_t holder = 0; holder < ring.members(); ++holder) {
    const Interval wanted = order.share(holder, attendant).in_block;
    if (wanted.extent() == 0) continue;
    const ir::Tensor held = local_constant(program, compute.operands[operand], group[holder]);
    std::vector<int64_t> begin(held.shape().size(), 0);
    ir::Shape extent = held.shape();
    begin[dim] = wanted.begin;
    extent[dim] = wanted.extent();
    parts.push_back(held.block(begin, extent));
  }
  return ir::concat(parts, dim);
}

std::vector<Interval> Dealer::held(const TokenOrder& order) const {
  std::vector<Interval> result;
  for (size_t k = 0; k < ring_.members(); ++k) result.push_back(order.share(me_, k).in_block);
  return result;
}

std::vector<Interval> Dealer::attended(const TokenOrder& order) const {
  std::vector<Interval> result;
  for (size_t k = 0; k < ring_.members(); ++k) result.push_back(order.share(k, me_).in_order);
  return result;
}

ValueId Dealer::deal(const Ring::PositionDim& positions, ValueId block, const std::string& node) {
  const auto& [dim, order] = positions;
  return exchange_along(dim, block, held(order), attended(order), group_, node, build_);
}

ValueId Dealer::give_back(const Ring::PositionDim& positions, ValueId result,
                          const std::string& node) {
  const auto& [dim, order] = positions;
  return exchange_along(dim, result, attended(order), held(order), group_, node, build_);
}

namespace {

// Slices of values, put together in the order of their places.
class Pieces {
 public:
  Pieces(size_t dim, ir::Builder& build) : dim_(static_cast<int64_t>(dim)), build_(build) {}

  void add(ValueId x, const Interval& of_x, int64_t place) {
    if (of_x.extent() == 0) return;
    by_place_[place] = build_.slice(x, dim_, of_x.begin, of_x.end);
  }
  ValueId joined() const {
    const auto values = by_place_ | std::views::values;
    return build_.concat({values.begin(), values.end()}, dim_);
  }

 private:
  int64_t dim_;
  ir::Builder& build_;
  std::map<int64_t, ValueId> by_place_;
};

}  // namespace

ValueId emulate_deal(const Ring::PositionDim& positions, const std::vector<ValueId>& held,
                     size_t attendant, ir::Builder& build) {
  Pieces pieces(positions.dim, build);
  for (size_t holder = 0; holder < held.size(); ++holder) {
    const auto [in_block, in_order] = positions.order.share(holder, attendant);
    pieces.add(held[holder], in_block, in_order.begin);
  }
  return pieces.joined();
}

ValueId emulate_return(const Ring::PositionDim& positions, const std::vector<ValueId>& attended,
                       size_t holder, ir::Builder& build) {
  Pieces pieces(positions.dim, build);
  for (size_t attendant = 0; attendant < attended.size(); ++attendant) {
    const auto [in_block, in_order] = positions.order.share(holder, attendant);
    pieces.add(attended[attendant], in_order, in_block.begin);
  }
  return pieces.joined();
}

}  // namespace autosp::transforms

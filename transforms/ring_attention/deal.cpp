#include "transforms/ring_attention/deal.h"

#include <algorithm>

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

ValueId Dealer::deal(const Ring::PositionDim& positions, ValueId block, const std::string& node) {
  const TokenOrder& order = positions.order;
  Routes routes{.extent = count(order.of(me_))};
  for (size_t member = 0; member < ring_.members(); ++member) {
    routes.sent.push_back(order.share(me_, member).in_block);
    routes.received.push_back(order.share(member, me_).in_order);
  }
  return exchange(positions.dim, block, routes, node);
}

ValueId Dealer::give_back(const Ring::PositionDim& positions, ValueId attended,
                          const std::string& node) {
  const TokenOrder& order = positions.order;
  Routes routes{.extent = order.block(me_).extent()};
  for (size_t member = 0; member < ring_.members(); ++member) {
    routes.sent.push_back(order.share(member, me_).in_order);
    routes.received.push_back(order.share(me_, member).in_block);
  }
  return exchange(positions.dim, attended, routes, node);
}

ValueId Dealer::exchange(size_t dim, ValueId x, const Routes& routes, const std::string& node) {
  const ir::Type sent = build_.graph().type(x);
  ir::Shape shape = sent.shape;
  shape[dim] = routes.extent;
  // An empty box has no extent at all.
  const auto append = [&](const Interval& interval, std::vector<int64_t>& begin,
                          std::vector<int64_t>& extent) {
    for (size_t d = 0; d < shape.size(); ++d) {
      const bool is_empty = interval.extent() == 0;
      begin.push_back(d == dim && !is_empty ? interval.begin : 0);
      extent.push_back(is_empty ? 0 : d == dim ? interval.extent() : shape[d]);
    }
  };
  std::vector<int64_t> send_begin;
  std::vector<int64_t> send_extent;
  std::vector<int64_t> recv_begin;
  std::vector<int64_t> recv_extent;
  for (size_t member = 0; member < ring_.members(); ++member) {
    append(routes.sent[member], send_begin, send_extent);
    append(routes.received[member], recv_begin, recv_extent);
  }
  ir::Attributes attributes{{"group", group_},
                            {"shape", shape},
                            {"send_begin", std::move(send_begin)},
                            {"send_extent", std::move(send_extent)},
                            {"recv_begin", std::move(recv_begin)},
                            {"recv_extent", std::move(recv_extent)}};
  return build_.node("AllToAll", {x}, ir::Type{sent.dtype, shape}, std::move(attributes),
                     std::string(ir::kAutospDomain), node);
}

namespace {

struct Piece {
  int64_t place;  // among what it is put together to
  ValueId value;
};

ValueId joined(std::vector<Piece> pieces, size_t dim, ir::Builder& build) {
  std::ranges::sort(pieces, {}, &Piece::place);
  std::vector<ValueId> parts;
  for (const Piece& piece : pieces) parts.push_back(piece.value);
  return build.concat(std::move(parts), static_cast<int64_t>(dim));
}

ValueId piece_of(ValueId x, size_t dim, const Interval& interval, ir::Builder& build) {
  return build.slice(x, static_cast<int64_t>(dim), interval.begin, interval.end);
}

}  // namespace

ValueId emulate_deal(const Ring::PositionDim& positions, const std::vector<ValueId>& held,
                     size_t attendant, ir::Builder& build) {
  std::vector<Piece> pieces;
  for (size_t holder = 0; holder < held.size(); ++holder) {
    const auto [in_block, in_order] = positions.order.share(holder, attendant);
    if (in_block.extent() == 0) continue;
    pieces.push_back({in_order.begin, piece_of(held[holder], positions.dim, in_block, build)});
  }
  return joined(std::move(pieces), positions.dim, build);
}

ValueId emulate_return(const Ring::PositionDim& positions, const std::vector<ValueId>& attended,
                       size_t holder, ir::Builder& build) {
  std::vector<Piece> pieces;
  for (size_t attendant = 0; attendant < attended.size(); ++attendant) {
    const auto [in_block, in_order] = positions.order.share(holder, attendant);
    if (in_block.extent() == 0) continue;
    pieces.push_back(
        {in_block.begin, piece_of(attended[attendant], positions.dim, in_order, build)});
  }
  return joined(std::move(pieces), positions.dim, build);
}

}  // namespace autosp::transforms

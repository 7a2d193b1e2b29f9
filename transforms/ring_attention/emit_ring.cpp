#include "transforms/ring_attention/emit_ring.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "transforms/ring_attention/block_attention.h"

namespace autosp::transforms {

using What = RingTransfer::What;

namespace {

class RingEmitter {
 public:
  RingEmitter(const SpmdProgram& program, const Compute& compute, int64_t rank,
              const std::vector<ValueId>& operands, const std::string& suffix, ir::Builder& build)
      : ring_(program, compute),
        group_(ring_.ranks_with(rank)),
        member_(ring_.member_of(rank)),
        attention_(program, compute, ring_, rank, operands, suffix, build),
        build_(build) {
    const auto at = *shard::attention_operands(program.graph().node(compute.node));
    own_ = {operands[at.key], operands[at.value]};
  }

  std::vector<ValueId> emit() {
    std::vector<ValueId> unseen;
    for (ValueId term : attention_.unseen_terms()) {
      const RingTransfer& transfer = *ring_.find(What::kUnseen, unseen.size());
      unseen.push_back(build_.node("AllReduce", {term}, ir::Type(build_.graph().type(term)),
                                   {{"group", group_}}, std::string(ir::kAutospDomain),
                                   transfer.node));
    }
    RingBlock block = own_;
    for (size_t step = 0; step < ring_.steps(); ++step) {
      RingBlock following;
      if (step + 1 < ring_.steps()) {
        following = {hand_on(What::kKey, step + 1, block.key),
                     hand_on(What::kValue, step + 1, block.value)};
      }
      RingBlock gradients;
      if (ring_.attends(member_, step)) gradients = attention_.attend(step, block);
      if (step > 0) {
        gradients = {bring_home(What::kKeyGradient, step, gradients.key, own_.key),
                     bring_home(What::kValueGradient, step, gradients.value, own_.value)};
      }
      attention_.add_home(gradients);
      block = following;
    }
    return attention_.finish(unseen);
  }

 private:
  // To one member, from one member; each may be missing.
  struct Route {
    std::optional<size_t> to;
    std::optional<size_t> from;
    int64_t received = 0;  // keys
  };

  ValueId hand_on(What what, size_t step, ValueId x) {
    Route route;
    const size_t next = ring_.next(member_);
    if (ring_.holds(next, step)) route.to = next;
    if (ring_.holds(member_, step)) {
      route.from = ring_.next(member_, ring_.members() - 1);
      route.received = ring_.keys(ring_.owner(member_, step)).extent();
    }
    return exchange(*ring_.find(what, step), x, route);
  }

  // What others made of the rank's own block; invalid where nobody did. `like` stands for the
  // gradient of a rank that has none.
  ValueId bring_home(What what, size_t step, ValueId gradient, ValueId like) {
    const RingTransfer* transfer = ring_.find(what, step);
    if (transfer == nullptr) return {};
    Route route;
    if (ring_.attends(member_, step)) route.to = ring_.owner(member_, step);
    const size_t from = ring_.next(member_, step);
    if (ring_.attends(from, step)) {
      route.from = from;
      route.received = ring_.keys(member_).extent();
    }
    const ValueId arrived = exchange(*transfer, route.to ? gradient : like, route);
    return route.from ? arrived : ValueId();
  }

  // Every member's boxes but those of the route are empty.
  ValueId exchange(const RingTransfer& transfer, ValueId x, const Route& route) {
    const ir::Type sent = build_.graph().type(x);
    ir::Shape shape = sent.shape;
    shape[2] = route.received;
    const size_t members = ring_.members();
    const size_t rank = shape.size();
    const std::vector<int64_t> begin(members * rank, 0);
    std::vector<int64_t> send(members * rank, 0);
    std::vector<int64_t> receive(members * rank, 0);
    const auto place = [rank](const ir::Shape& extents, size_t member,
                              std::vector<int64_t>& boxes) {
      std::ranges::copy(extents, boxes.begin() + static_cast<std::ptrdiff_t>(member * rank));
    };
    if (route.to) place(sent.shape, *route.to, send);
    if (route.from) place(shape, *route.from, receive);
    ir::Attributes attributes{{"group", group_},     {"shape", shape},
                              {"send_begin", begin}, {"send_extent", send},
                              {"recv_begin", begin}, {"recv_extent", receive}};
    return build_.node("AllToAll", {x}, ir::Type{sent.dtype, shape}, std::move(attributes),
                       std::string(ir::kAutospDomain), transfer.node);
  }

  Ring ring_;
  std::vector<int64_t> group_;
  size_t member_;
  RingBlock own_;
  BlockAttention attention_;
  ir::Builder& build_;
};

}  // namespace

std::vector<ValueId> emit_ring(const SpmdProgram& program, const Compute& compute, int64_t rank,
                               const std::vector<ValueId>& operands, const std::string& suffix,
                               ir::Builder& build) {
  return RingEmitter(program, compute, rank, operands, suffix, build).emit();
}

std::vector<std::vector<ValueId>> emulate_ring(const SpmdProgram& program, const Compute& compute,
                                               const std::vector<std::vector<ValueId>>& operands,
                                               const std::string& suffix, ir::Builder& build) {
  const Ring ring(program, compute);
  const auto at = *shard::attention_operands(program.graph().node(compute.node));
  std::vector<BlockAttention> attentions;
  for (size_t rank = 0; rank < operands.size(); ++rank) {
    attentions.emplace_back(program, compute, ring, static_cast<int64_t>(rank), operands[rank],
                            fmt::format("{}@{}", suffix, rank), build);
  }
  std::vector<std::vector<ValueId>> unseen;  // by rank
  for (BlockAttention& attention : attentions) unseen.push_back(attention.unseen_terms());
  for (size_t step = 0; step < ring.steps(); ++step) {
    for (size_t rank = 0; rank < operands.size(); ++rank) {
      const size_t member = ring.member_of(static_cast<int64_t>(rank));
      if (!ring.attends(member, step)) continue;
      const auto group = ring.ranks_with(static_cast<int64_t>(rank));
      const auto owner = static_cast<size_t>(group[ring.owner(member, step)]);
      const RingBlock gradients =
          attentions[rank].attend(step, {operands[owner][at.key], operands[owner][at.value]});
      attentions[owner].add_home(gradients);
    }
  }
  std::vector<std::vector<ValueId>> results;
  for (size_t rank = 0; rank < attentions.size(); ++rank) {
    std::vector<ValueId> sums;
    for (size_t k = 0; k < unseen[rank].size(); ++k) {
      std::vector<ValueId> terms;
      for (int64_t other : ring.ranks_with(static_cast<int64_t>(rank)))
        terms.push_back(unseen[static_cast<size_t>(other)][k]);
      sums.push_back(build.sum(terms));
    }
    results.push_back(attentions[rank].finish(sums));
  }
  return results;
}

}  // namespace autosp::transforms

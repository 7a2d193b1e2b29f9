#include "transforms/ring_attention/emit_ring.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "transforms/ring_attention/block_attention.h"
#include "transforms/ring_attention/deal.h"
#include "transforms/ring_attention/exchange_along.h"

namespace autosp::transforms {

using What = RingTransfer::What;

namespace {

std::string result_name(const SpmdProgram& program, const Compute& compute, size_t k) {
  return program.graph().name_of(program.graph().node(compute.node).outputs[k]);
}

class RingEmitter {
 public:
  RingEmitter(const SpmdProgram& program, const Compute& compute, int64_t rank,
              const std::vector<ValueId>& operands, const std::string& suffix, ir::Builder& build)
      : program_(program),
        compute_(compute),
        rank_(rank),
        suffix_(suffix),
        ring_(program, compute),
        schedule_(ring_.schedule()),
        group_(ring_.ranks_with(rank)),
        member_(ring_.member_of(rank)),
        build_(build),
        operands_(dealt(operands)),
        attention_(program, compute, ring_, rank, operands_, suffix, build) {
    const auto at = *shard::attention_operands(program.graph().node(compute.node));
    own_ = {operands_[at.key], operands_[at.value]};
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
    for (size_t step = 0; step < schedule_.steps(); ++step) {
      RingBlock following;
      if (step + 1 < schedule_.steps()) {
        following = {hand_on(What::kKey, step + 1, block.key),
                     hand_on(What::kValue, step + 1, block.value)};
      }
      RingBlock gradients;
      if (schedule_.attends(member_, step)) gradients = attention_.attend(step, block);
      if (step > 0) {
        gradients = {bring_home(What::kKeyGradient, step, gradients.key, own_.key),
                     bring_home(What::kValueGradient, step, gradients.value, own_.value)};
      }
      attention_.add_home(gradients);
      block = following;
    }
    return given_back(attention_.finish(unseen));
  }

 private:
  std::vector<ValueId> dealt(std::vector<ValueId> operands) {
    Dealer dealer(ring_, rank_, build_);
    for (size_t k = 0; k < operands.size(); ++k) {
      const auto positions = ring_.operand_positions(k);
      if (!operands[k] || !positions) continue;
      operands[k] = program_.is_constant(compute_.operands[k])
                        ? build_.constant(dealt_constant(program_, compute_, ring_, k, rank_))
                        : dealer.deal(*positions, operands[k], ring_.find(What::kDeal, k)->node);
    }
    return operands;
  }

  std::vector<ValueId> given_back(std::vector<ValueId> results) {
    Dealer dealer(ring_, rank_, build_);
    for (size_t k = 0; k < results.size(); ++k) {
      const auto positions = ring_.result_positions(k);
      if (!results[k] || !positions) continue;
      const ValueId own =
          dealer.give_back(*positions, results[k], ring_.find(What::kReturn, k)->node);
      results[k] = build_.identity(own, result_name(program_, compute_, k) + suffix_);
    }
    return results;
  }

  // To one member, from one member; each may be missing.
  struct Route {
    std::optional<size_t> to;
    std::optional<size_t> from;
    int64_t received = 0;  // keys
  };

  ValueId hand_on(What what, size_t step, ValueId x) {
    Route route;
    const size_t next = schedule_.next(member_);
    if (schedule_.holds(next, step)) route.to = next;
    if (schedule_.holds(member_, step)) {
      route.from = schedule_.next(member_, ring_.members() - 1);
      route.received = count(schedule_.block(member_, step));
    }
    return exchange(*ring_.find(what, step), x, route);
  }

  // What others made of the rank's own block; invalid where nobody did. `like` stands for the
  // gradient of a rank that has none.
  ValueId bring_home(What what, size_t step, ValueId gradient, ValueId like) {
    const RingTransfer* transfer = ring_.find(what, step);
    if (transfer == nullptr) return {};
    Route route;
    if (schedule_.attends(member_, step)) route.to = schedule_.owner(member_, step);
    const size_t from = schedule_.next(member_, step);
    if (schedule_.attends(from, step)) {
      route.from = from;
      route.received = count(schedule_.keys().of(member_));
    }
    const ValueId arrived = exchange(*transfer, route.to ? gradient : like, route);
    return route.from ? arrived : ValueId();
  }

  ValueId exchange(const RingTransfer& transfer, ValueId x, const Route& route) {
    std::vector<shard::Interval> sent(ring_.members());
    std::vector<shard::Interval> received(ring_.members());
    if (route.to) sent[*route.to] = {0, build_.graph().shape(x)[2]};
    if (route.from) received[*route.from] = {0, route.received};
    return exchange_along(2, x, sent, received, group_, transfer.node, build_);
  }

  const SpmdProgram& program_;
  const Compute& compute_;
  int64_t rank_;
  std::string suffix_;
  Ring ring_;
  const RingSchedule& schedule_;
  std::vector<int64_t> group_;
  size_t member_;
  ir::Builder& build_;
  std::vector<ValueId> operands_;  // in the ring's order
  BlockAttention attention_;
  RingBlock own_;
};

}  // namespace

std::vector<ValueId> emit_ring(const SpmdProgram& program, const Compute& compute, int64_t rank,
                               const std::vector<ValueId>& operands, const std::string& suffix,
                               ir::Builder& build) {
  return RingEmitter(program, compute, rank, operands, suffix, build).emit();
}

namespace {

// All ranks' rings in one graph.
class RingEmulator {
 public:
  RingEmulator(const SpmdProgram& program, const Compute& compute, std::string suffix,
               ir::Builder& build)
      : program_(program),
        compute_(compute),
        suffix_(std::move(suffix)),
        ring_(program, compute),
        schedule_(ring_.schedule()),
        build_(build) {}

  // `held` and the results are by rank.
  std::vector<std::vector<ValueId>> emulate(const std::vector<std::vector<ValueId>>& held) {
    const auto at = *shard::attention_operands(program_.graph().node(compute_.node));
    const std::vector<std::vector<ValueId>> operands = dealt(held);
    std::vector<BlockAttention> attentions;
    for (size_t rank = 0; rank < operands.size(); ++rank) {
      attentions.emplace_back(program_, compute_, ring_, static_cast<int64_t>(rank), operands[rank],
                              suffix_of(rank), build_);
    }
    std::vector<std::vector<ValueId>> unseen;  // by rank
    for (BlockAttention& attention : attentions) unseen.push_back(attention.unseen_terms());
    for (size_t step = 0; step < schedule_.steps(); ++step) {
      for (size_t rank = 0; rank < operands.size(); ++rank) {
        const size_t member = member_of(rank);
        if (!schedule_.attends(member, step)) continue;
        const size_t owner = ranks_with(rank)[schedule_.owner(member, step)];
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
        for (size_t other : ranks_with(rank)) terms.push_back(unseen[other][k]);
        sums.push_back(build_.sum(terms));
      }
      results.push_back(attentions[rank].finish(sums));
    }
    return given_back(results);
  }

 private:
  size_t member_of(size_t rank) const { return ring_.member_of(static_cast<int64_t>(rank)); }
  std::vector<size_t> ranks_with(size_t rank) const {
    const auto ranks = ring_.ranks_with(static_cast<int64_t>(rank));
    return {ranks.begin(), ranks.end()};
  }
  std::string suffix_of(size_t rank) const { return fmt::format("{}@{}", suffix_, rank); }

  // Of the ranks of a ring, by member.
  std::vector<ValueId> of_ring(const std::vector<std::vector<ValueId>>& values, size_t rank,
                               size_t k) const {
    std::vector<ValueId> result;
    for (size_t other : ranks_with(rank)) result.push_back(values[other][k]);
    return result;
  }

  std::vector<std::vector<ValueId>> dealt(const std::vector<std::vector<ValueId>>& held) {
    std::vector<std::vector<ValueId>> result = held;
    for (size_t rank = 0; rank < held.size(); ++rank) {
      for (size_t k = 0; k < held[rank].size(); ++k) {
        const auto positions = ring_.operand_positions(k);
        if (!held[rank][k] || !positions) continue;
        result[rank][k] =
            program_.is_constant(compute_.operands[k])
                ? build_.constant(
                      dealt_constant(program_, compute_, ring_, k, static_cast<int64_t>(rank)))
                : emulate_deal(*positions, of_ring(held, rank, k), member_of(rank), build_);
      }
    }
    return result;
  }

  std::vector<std::vector<ValueId>> given_back(const std::vector<std::vector<ValueId>>& attended) {
    std::vector<std::vector<ValueId>> result = attended;
    for (size_t rank = 0; rank < attended.size(); ++rank) {
      for (size_t k = 0; k < attended[rank].size(); ++k) {
        const auto positions = ring_.result_positions(k);
        if (!attended[rank][k] || !positions) continue;
        const ValueId own =
            emulate_return(*positions, of_ring(attended, rank, k), member_of(rank), build_);
        result[rank][k] =
            build_.identity(own, result_name(program_, compute_, k) + suffix_of(rank));
      }
    }
    return result;
  }

  const SpmdProgram& program_;
  const Compute& compute_;
  std::string suffix_;
  Ring ring_;
  const RingSchedule& schedule_;
  ir::Builder& build_;
};

}  // namespace

std::vector<std::vector<ValueId>> emulate_ring(const SpmdProgram& program, const Compute& compute,
                                               const std::vector<std::vector<ValueId>>& operands,
                                               const std::string& suffix, ir::Builder& build) {
  return RingEmulator(program, compute, suffix, build).emulate(operands);
}

}  // namespace autosp::transforms

#include "transforms/training/exchange.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace autosp::transforms {

namespace {

class ExchangePlanner {
 public:
  ExchangePlanner(const SpmdProgram& program, int zero) : program_(program) {
    exchange_.plan.ranks = program.plan->mesh.size();
    exchange_.plan.zero = exchange_.plan.ranks == 1 ? 0 : zero;
    exchange_.replaced.assign(program.instructions.size(), false);
    made_by_.assign(program.placed.size(), kNone);
    for (size_t k = 0; k < program.instructions.size(); ++k) {
      for (PlacedId result : results_of(program.instructions[k])) made_by_[result.index()] = k;
    }
  }

  Exchange run(int64_t bucket_bytes) {
    find_parameters();
    for (const GradientTerms& terms : exchange_.terms) ready_.push_back(ready_after(terms.value));
    const bool alone = exchange_.gathers_parameters();
    exchange_.plan.buckets = make_buckets(exchange_.plan.parameters, order(),
                                          alone ? 0 : bucket_bytes, exchange_.plan.ranks);
    for (const Bucket& bucket : exchange_.plan.buckets) {
      size_t last = 0;
      for (const BucketMember& member : bucket.members) {
        last = std::max(last, ready_[member.parameter]);
        replace_move(member.parameter);
      }
      exchange_.complete_after.push_back(last);
    }
    if (alone) plan_gathers();
    return std::move(exchange_);
  }

 private:
  static constexpr size_t kNone = ~size_t{0};

  void find_parameters() {
    const ir::Graph& graph = program_.graph();
    for (const shard::Gradient& gradient : program_.plan->roles.gradients) {
      const ir::Output& output = graph.outputs()[gradient.output];
      const auto input = std::ranges::find_if(
          graph.inputs(), [&](ValueId id) { return graph.name_of(id) == gradient.parameter; });
      AUTOSP_CHECK(input != graph.inputs().end(), "'{}' is no input", gradient.parameter);
      exchange_.plan.parameters.push_back({.name = gradient.parameter,
                                           .gradient = output.name,
                                           .type = graph.type(*input),
                                           .gradient_dtype = graph.type(output.value).dtype});
      exchange_.inputs.push_back(
          program_.inputs[static_cast<size_t>(input - graph.inputs().begin())]);
      exchange_.terms.push_back(terms_of(program_.outputs[gradient.output]));
    }
  }

  GradientTerms terms_of(PlacedId sum) const {
    const size_t maker = made_by_[sum.index()];
    if (maker != kNone) {
      const auto* move = std::get_if<Move>(&program_.instructions[maker]);
      if (move != nullptr && move->kind == StepKind::kAllReduce) {
        return {.value = move->from, .partial = move->axes, .sum = sum};
      }
    }
    return {.value = sum, .partial = {}, .sum = sum};
  }

  // The instruction after which the value is at hand; what a tile loop makes is so at its end.
  size_t ready_after(PlacedId value) const {
    const size_t maker = made_by_[value.index()];
    if (maker == kNone) return 0;
    for (const TileLoop& loop : program_.tile_loops) {
      if (maker >= loop.first && maker < loop.first + loop.count)
        return loop.first + loop.count - 1;
    }
    return maker;
  }

  // Those whose gradients a bucket carries, as these are made. At zero 0 gradients that are no sum
  // over all ranks stay with the moves that the plan made for them.
  std::vector<size_t> order() const {
    std::vector<size_t> result(exchange_.terms.size());
    std::iota(result.begin(), result.end(), size_t{0});
    if (exchange_.plan.zero == 0) {
      std::erase_if(result, [&](size_t k) { return !is_sum_over_all(exchange_.terms[k]); });
    }
    std::ranges::stable_sort(result, {}, [&](size_t k) { return ready_[k]; });
    return result;
  }

  bool is_sum_over_all(const GradientTerms& terms) const {
    int64_t ranks = 1;
    for (size_t axis : terms.partial) ranks *= program_.plan->mesh.axes()[axis].size;
    return !terms.partial.empty() && ranks == exchange_.plan.ranks;
  }

  // The sum is not needed under its own name any more, unless something else reads it.
  void replace_move(size_t parameter) {
    const GradientTerms& terms = exchange_.terms[parameter];
    if (terms.partial.empty()) return;
    const auto reads = [&](const Instruction& instruction) {
      const std::vector<PlacedId> operands = operands_of(instruction);
      return std::ranges::find(operands, terms.sum) != operands.end();
    };
    if (std::ranges::any_of(program_.instructions, reads)) return;
    for (size_t k = 0; k < program_.outputs.size(); ++k) {
      const bool other = program_.outputs[k] == terms.sum &&
                         std::ranges::none_of(program_.plan->roles.gradients,
                                              [k](const auto& g) { return g.output == k; });
      if (other) return;
    }
    exchange_.replaced[made_by_[terms.sum.index()]] = true;
  }

  void plan_gathers() {
    const std::vector<Bucket>& buckets = exchange_.plan.buckets;
    for (size_t b = 0; b < buckets.size(); ++b) {
      std::vector<bool> is_member(program_.placed.size(), false);
      for (const BucketMember& member : buckets[b].members) {
        is_member[exchange_.inputs[member.parameter].index()] = true;
      }
      bool forward = false;
      bool backward = false;
      for (size_t k = 0; k < program_.instructions.size(); ++k) {
        const Instruction& instruction = program_.instructions[k];
        const auto operands = operands_of(instruction);
        const bool reads =
            std::ranges::any_of(operands, [&](PlacedId id) { return bool{is_member[id.index()]}; });
        if (!reads) continue;
        bool& done = phase_of(instruction) == Phase::kForward ? forward : backward;
        if (!done) exchange_.gathers[before(k)].push_back(b);
        done = true;
      }
    }
  }

  // Loops run as a whole: what they read is gathered before them.
  size_t before(size_t instruction) const {
    for (const TileLoop& loop : program_.tile_loops) {
      if (instruction >= loop.first && instruction < loop.first + loop.count) return loop.first;
    }
    return instruction;
  }

  const SpmdProgram& program_;
  Exchange exchange_;
  std::vector<size_t> made_by_;  // by placed value
  std::vector<size_t> ready_;    // by parameter
};

}  // namespace

Exchange plan_exchange(const SpmdProgram& program, const OptimizerSettings& optimizer, int zero,
                       int64_t bucket_bytes, int64_t accumulate) {
  Exchange exchange = ExchangePlanner(program, zero).run(bucket_bytes);
  exchange.plan.optimizer = optimizer;
  exchange.plan.accumulate = accumulate;
  return exchange;
}

}  // namespace autosp::transforms

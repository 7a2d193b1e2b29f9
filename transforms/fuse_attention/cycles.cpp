#include <algorithm>

#include "transforms/fuse_attention/emit.h"

namespace autosp::transforms::fusion {

namespace {

// A fused operator, as the values it will read and make.
struct FusedOperator {
  std::vector<ValueId> reads;
  std::vector<ValueId> makes;
};

std::vector<FusedOperator> operators_of(const RegionPlan& plan) {
  std::vector<ValueId> reads = plan.mask_operands();
  for (const OperandRole role : {OperandRole::kQuery, OperandRole::kKey, OperandRole::kValue}) {
    reads.push_back(plan.root(role));
  }
  const ValueId output = plan.cutout.result_of.at(ResultRole::kOutput);
  std::vector<FusedOperator> result = {{.reads = reads, .makes = {output}}};
  if (!plan.has_backward()) return result;
  FusedOperator backward{.reads = reads, .makes = {}};
  backward.reads.push_back(output);
  backward.reads.push_back(plan.root(OperandRole::kOutputGradient));
  for (const auto& [role, value] : plan.cutout.result_of) {
    if (role != ResultRole::kOutput) backward.makes.push_back(value);
  }
  result.push_back(std::move(backward));
  return result;
}

class CycleFinder {
 public:
  explicit CycleFinder(const GraphFacts& facts) : facts_(facts) {}

  // Whether `target`, once fused, could reach itself through the graph and the accepted operators.
  bool reaches_itself(const FusedOperator& target) const {
    std::vector<bool> reached(facts_.graph().values().size(), false);
    std::vector<ValueId> open = target.makes;
    std::vector<bool> jumped(accepted_.size(), false);
    while (!open.empty()) {
      const ValueId value = open.back();
      open.pop_back();
      if (reached[value.index()]) continue;
      reached[value.index()] = true;
      if (std::ranges::find(target.reads, value) != target.reads.end()) return true;
      for (const NodeId reader : facts_.readers(value)) {
        for (ValueId output : facts_.graph().node(reader).outputs) {
          if (output) open.push_back(output);
        }
      }
      for (size_t k = 0; k < accepted_.size(); ++k) {
        if (jumped[k] || std::ranges::find(accepted_[k].reads, value) == accepted_[k].reads.end()) {
          continue;
        }
        jumped[k] = true;
        open.insert(open.end(), accepted_[k].makes.begin(), accepted_[k].makes.end());
      }
    }
    return false;
  }

  void accept(const FusedOperator& op) { accepted_.push_back(op); }
  void withdraw() { accepted_.pop_back(); }

 private:
  const GraphFacts& facts_;
  std::vector<FusedOperator> accepted_;
};

}  // namespace

std::vector<std::string> find_cycles(const GraphFacts& facts,
                                     const std::vector<const RegionPlan*>& plans) {
  CycleFinder finder(facts);
  std::vector<std::string> reasons;
  for (const RegionPlan* plan : plans) {
    reasons.emplace_back();
    const std::vector<FusedOperator> operators = operators_of(*plan);
    for (size_t k = 0; k < operators.size() && reasons.back().empty(); ++k) {
      finder.accept(operators[k]);
      if (!finder.reaches_itself(operators[k])) continue;
      reasons.back() = fmt::format("an operand of the fused {} depends on its result '{}'",
                                   k == 0 ? "attention" : "gradient",
                                   facts.graph().name_of(operators[k].makes[0]));
      for (size_t back = 0; back <= k; ++back) finder.withdraw();
    }
  }
  return reasons;
}

}  // namespace autosp::transforms::fusion

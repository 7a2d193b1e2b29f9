#include <algorithm>
#include <unordered_map>

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
      const auto readers = readers_.find(value);
      if (readers == readers_.end()) continue;
      for (const size_t k : readers->second) {
        if (!jumped[k]) {
          open.insert(open.end(), accepted_[k].makes.begin(), accepted_[k].makes.end());
        }
        jumped[k] = true;
      }
    }
    return false;
  }

  // Whether any accepted operator could: the values of the graph have no order then in which each
  // comes after what it depends on, in the graph or through an operator.
  bool any_reaches_itself() const {
    const ir::Graph& graph = facts_.graph();
    // A value waits for the operands of its producer, and of every operator that makes it.
    std::vector<size_t> waits(graph.values().size(), 0);
    for (const ir::Node& node : graph.nodes()) {
      const auto operands = std::ranges::count_if(node.inputs, [](ValueId id) { return bool(id); });
      for (ValueId output : node.outputs) {
        if (output) waits[output.index()] += static_cast<size_t>(operands);
      }
    }
    for (const FusedOperator& op : accepted_) {
      for (ValueId made : op.makes) waits[made.index()] += op.reads.size();
    }
    std::vector<ValueId> open;
    for (size_t v = 0; v < waits.size(); ++v) {
      if (waits[v] == 0) open.emplace_back(v);
    }
    size_t done = 0;
    const auto arrive = [&](ValueId value) {
      if (--waits[value.index()] == 0) open.push_back(value);
    };
    while (!open.empty()) {
      const ValueId value = open.back();
      open.pop_back();
      ++done;
      for (const NodeId reader : facts_.readers(value)) {
        const ir::Node& node = graph.node(reader);
        const auto times = std::ranges::count(node.inputs, value);
        for (ValueId output : node.outputs) {
          for (auto k = times; output && k > 0; --k) arrive(output);
        }
      }
      const auto readers = readers_.find(value);
      if (readers == readers_.end()) continue;
      for (const size_t k : readers->second) {
        for (ValueId made : accepted_[k].makes) arrive(made);
      }
    }
    return done < waits.size();
  }

  void accept(const FusedOperator& op) {
    for (ValueId read : op.reads) readers_[read].push_back(accepted_.size());
    accepted_.push_back(op);
  }

  void withdraw() {
    for (ValueId read : accepted_.back().reads) readers_[read].pop_back();
    accepted_.pop_back();
  }

 private:
  const GraphFacts& facts_;
  std::vector<FusedOperator> accepted_;
  // By value, once for each time that an accepted operator reads it.
  std::unordered_map<ValueId, std::vector<size_t>> readers_;
};

}  // namespace

std::vector<std::string> find_cycles(const GraphFacts& facts,
                                     const std::vector<const RegionPlan*>& plans) {
  CycleFinder all(facts);
  for (const RegionPlan* plan : plans) {
    for (const FusedOperator& op : operators_of(*plan)) all.accept(op);
  }
  std::vector<std::string> reasons;
  if (!all.any_reaches_itself()) {
    reasons.resize(plans.size());
    return reasons;
  }
  CycleFinder finder(facts);
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

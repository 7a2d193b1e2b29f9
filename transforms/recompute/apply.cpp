// Copies of forward instructions, each just before the first backward instruction that reads it.
//
// Hoisted to the turning point all copies would live at once, and nothing would be gained; so a
// copy is made on demand, its operands' copies first. The forward pass comes first as a whole: a
// backward instruction that a file lists among forward ones would otherwise call for copies too
// early.
#include <map>

#include "base/error.h"
#include "ir/operator_traits.h"
#include "transforms/recompute/recompute.h"

namespace autosp::transforms {

namespace {

class Applier {
 public:
  Applier(const SpmdProgram& program, const RecomputePlan& plan)
      : from_(program), plan_(plan), producer_(program.placed.size(), -1) {
    to_ = {.plan = program.plan,
           .placed = program.placed,
           .inputs = program.inputs,
           .outputs = program.outputs,
           .instructions = {},
           .ring_schedules = program.ring_schedules};
    for (size_t k = 0; k < from_.instructions.size(); ++k) {
      for (PlacedId result : results_of(from_.instructions[k])) {
        producer_[result.index()] = static_cast<int>(k);
      }
    }
  }

  SpmdProgram apply() {
    for (const Instruction& instruction : from_.instructions) {
      if (phase_of(instruction) == Phase::kForward) to_.instructions.push_back(instruction);
    }
    for (const Instruction& instruction : from_.instructions) {
      if (phase_of(instruction) == Phase::kForward) continue;
      to_.instructions.push_back(with_copied_operands(instruction));
    }
    return std::move(to_);
  }

 private:
  Instruction with_copied_operands(Instruction instruction) {
    if (auto* move = std::get_if<Move>(&instruction)) {
      move->from = copied(move->from);
    } else {
      for (PlacedId& operand : std::get<Compute>(instruction).operands) operand = copied(operand);
    }
    return instruction;
  }

  // The value that stands for a forward value in the backward pass.
  PlacedId copied(PlacedId id) {
    if (!id || producer_[id.index()] < 0) return id;
    const auto k = static_cast<size_t>(producer_[id.index()]);
    if (!plan_.recomputed[k]) return id;
    if (const auto known = copies_.find(id); known != copies_.end()) return known->second;
    Instruction copy = with_copied_operands(from_.instructions[k]);
    if (is_same_view(copy, from_.instructions[k])) return copies_[id] = id;
    if (auto* move = std::get_if<Move>(&copy)) {
      move->phase = Phase::kRecompute;
      move->to = copy_result(move->to);
    } else {
      auto& compute = std::get<Compute>(copy);
      compute.phase = Phase::kRecompute;
      for (PlacedId& result : compute.results) result = copy_result(result);
    }
    to_.instructions.push_back(std::move(copy));
    return copies_.at(id);
  }

  // A view of a value that is kept needs no copy: it has no bytes.
  bool is_same_view(const Instruction& copy, const Instruction& original) const {
    const auto* compute = std::get_if<Compute>(&copy);
    return compute != nullptr && ir::is_view(from_.graph().node(compute->node)) &&
           operands_of(copy) == operands_of(original);
  }

  PlacedId copy_result(PlacedId id) {
    if (!id) return id;
    to_.placed.push_back(from_.at(id));
    return copies_[id] = PlacedId(to_.placed.size() - 1);
  }

  const SpmdProgram& from_;
  const RecomputePlan& plan_;
  std::vector<int> producer_;  // by placed value: an instruction of `from_`
  std::map<PlacedId, PlacedId> copies_;
  SpmdProgram to_;
};

}  // namespace

SpmdProgram apply_recompute(const SpmdProgram& program, const RecomputePlan& plan) {
  AUTOSP_CHECK(plan.recomputed.size() == program.instructions.size(), "{} of {} instructions",
               plan.recomputed.size(), program.instructions.size());
  return Applier(program, plan).apply();
}

}  // namespace autosp::transforms

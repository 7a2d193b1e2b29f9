#include "transforms/recompute/simulate.h"

#include <algorithm>
#include <utility>

#include "reference/kernels.h"
#include "transforms/ring_attention/ring.h"

namespace autosp::transforms {

namespace {

class Scheduler {
 public:
  Scheduler(const ForwardPass& forward, const std::vector<bool>& recomputed)
      : forward_(forward), recomputed_(recomputed), copied_(recomputed.size(), false) {}

  std::vector<Step> run() {
    const auto& instructions = forward_.instructions();
    for (size_t k = 0; k < instructions.size(); ++k) {
      if (forward_.is_forward(k)) steps_.push_back({k, false});
    }
    for (size_t k = 0; k < instructions.size(); ++k) {
      if (forward_.is_forward(k)) continue;
      copy_operands(k);
      steps_.push_back({k, false});
    }
    return std::move(steps_);
  }

 private:
  void copy_operands(size_t k) {
    for (PlacedId operand : operands_of(forward_.instructions()[k])) {
      const int made = forward_.producer(operand);
      if (made < 0 || !recomputed_[static_cast<size_t>(made)]) continue;
      const auto producer = static_cast<size_t>(made);
      if (copied_[producer]) continue;
      copied_[producer] = true;
      copy_operands(producer);
      steps_.push_back({producer, true});
    }
  }

  const ForwardPass& forward_;
  const std::vector<bool>& recomputed_;
  std::vector<bool> copied_;
  std::vector<Step> steps_;
};

// Storages are numbered by the values that own them; a copy's value is numbered `count` further.
class Simulation {
 public:
  Simulation(const ForwardPass& forward, const std::vector<bool>& recomputed)
      : forward_(forward),
        recomputed_(recomputed),
        count_(forward.program().placed.size()),
        storage_(2 * count_),
        last_(2 * count_, -1),
        held_(2 * count_, 0) {
    for (size_t v = 0; v < storage_.size(); ++v) storage_[v] = v;
  }

  int64_t run() {
    const std::vector<Step> steps = schedule(forward_, recomputed_);
    find_storages(steps);
    std::vector<std::vector<size_t>> ends(steps.size());
    for (size_t v = 0; v < last_.size(); ++v) {
      if (last_[v] >= 0 && last_[v] < static_cast<int>(steps.size())) {
        ends[static_cast<size_t>(last_[v])].push_back(v);
      }
    }
    int64_t live = 0;
    int64_t peak = 0;
    for (size_t at = 0; at < steps.size(); ++at) {
      live += make_results(steps[at], static_cast<int>(at));
      peak = std::max(peak, live + working_bytes(steps[at]));
      for (size_t storage : ends[at]) live -= std::exchange(held_[storage], 0);
    }
    return peak;
  }

 private:
  size_t operand_value(const Step& step, PlacedId operand) const {
    const int made = forward_.producer(operand);
    const bool reads_copy = step.copy || !forward_.is_forward(step.instruction);
    const bool copied = reads_copy && made >= 0 && recomputed_[static_cast<size_t>(made)];
    return operand.index() + (copied ? count_ : 0);
  }
  size_t result_value(const Step& step, PlacedId result) const {
    return result.index() + (step.copy ? count_ : 0);
  }

  int64_t working_bytes(const Step& step) const {
    const auto* compute = std::get_if<Compute>(&forward_.instructions()[step.instruction]);
    const SpmdProgram& program = forward_.program();
    if (compute == nullptr || !program.plan->is_on_ring(compute->node)) return 0;
    return ring_working_bytes(program, *compute, 0);
  }

  void find_storages(const std::vector<Step>& steps) {
    for (size_t at = 0; at < steps.size(); ++at) {
      const Step& step = steps[at];
      const Instruction& instruction = forward_.instructions()[step.instruction];
      const auto operands = operands_of(instruction);
      for (PlacedId operand : operands) {
        last_[storage_[operand_value(step, operand)]] = static_cast<int>(at);
      }
      for (PlacedId result : results_of(instruction)) {
        const size_t value = result_value(step, result);
        if (forward_.is_view(step.instruction)) {
          storage_[value] = storage_[operand_value(step, operands[0])];
        }
        last_[storage_[value]] = static_cast<int>(at);
      }
    }
    for (PlacedId output : forward_.program().outputs) {
      last_[storage_[output.index()]] = static_cast<int>(steps.size());
    }
  }

  // Bytes that come to life.
  int64_t make_results(const Step& step, int at) {
    if (forward_.is_view(step.instruction)) return 0;
    const Instruction& instruction = forward_.instructions()[step.instruction];
    const ir::Node* node = forward_.node(step.instruction);
    bool in_place = node != nullptr && reference::aliasing_of(node->domain, node->op) ==
                                           reference::Aliasing::kElementwise;
    int64_t added = 0;
    for (PlacedId result : results_of(instruction)) {
      const size_t value = result_value(step, result);
      held_[value] = forward_.bytes(result);
      if (in_place && take_over(step, instruction, at, result)) {
        in_place = false;
        continue;
      }
      added += held_[value];
    }
    return added;
  }

  bool take_over(const Step& step, const Instruction& instruction, int at, PlacedId result) {
    for (PlacedId operand : operands_of(instruction)) {
      const size_t storage = storage_[operand_value(step, operand)];
      if (last_[storage] != at || held_[storage] == 0) continue;
      if (held_[storage] != forward_.bytes(result)) continue;
      held_[storage] = 0;
      return true;
    }
    return false;
  }

  const ForwardPass& forward_;
  const std::vector<bool>& recomputed_;
  size_t count_;
  std::vector<size_t> storage_;  // by value: whose bytes these are
  std::vector<int> last_;        // by storage: the last step that uses it
  std::vector<int64_t> held_;    // by storage: bytes, while live
};

}  // namespace

std::vector<Step> schedule(const ForwardPass& forward, const std::vector<bool>& recomputed) {
  return Scheduler(forward, recomputed).run();
}

int64_t simulated_peak(const ForwardPass& forward, const std::vector<bool>& recomputed) {
  return Simulation(forward, recomputed).run();
}

}  // namespace autosp::transforms

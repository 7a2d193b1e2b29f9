#include "ring_choice.h"

#include <limits>

#include "prediction.h"
#include "transforms/ring_attention/ring.h"

namespace autosp::cli {

namespace {

// One way to see all keys, planned.
struct Planned {
  bool has_ring = false;
  bool has_zigzag = false;
  Prediction prediction;
};

class RingPlanner {
 public:
  RingPlanner(PlanArguments plan, const LoadedModel& model, RecomputeArguments recompute,
              const cost::Device& device, bool overlap)
      : plan_(std::move(plan)),
        model_(model),
        recompute_(std::move(recompute)),
        device_(device),
        overlap_(overlap) {
    if (budget_of(recompute_) || recompute_.policy == "auto") recompute_.policy = "full";
  }

  // Predicted only where it is another way than the one before it: nothing else is chosen.
  Planned planned(const std::string& ring) const {
    PlanArguments arguments = plan_;
    arguments.ring = ring;
    const shard::Plan plan = plan_model(model_, arguments);
    const transforms::SpmdProgram kept = transforms::build_program(plan);
    Planned result{.has_ring = plan.has_ring(),
                   .has_zigzag = plan.has_ring() && transforms::zigzag_use(kept).zigzag > 0};
    const bool is_another =
        ring == "off" || (ring == "zigzag" ? result.has_zigzag : result.has_ring);
    if (!is_another) return result;
    const RecomputedProgram program = with_recompute(kept, recompute_, device_, 0);
    result.prediction = predict(model_, program.program, device_, overlap_);
    return result;
  }

 private:
  PlanArguments plan_;
  const LoadedModel& model_;
  RecomputeArguments recompute_;
  const cost::Device& device_;
  bool overlap_;
};

}  // namespace

PlanArguments with_ring_chosen(PlanArguments plan, const LoadedModel& model,
                               const RecomputeArguments& recompute, const cost::Device& device,
                               bool overlap) {
  if (plan.ring != "auto") return plan;
  const RingPlanner planner(plan, model, recompute, device, overlap);
  plan.ring = "off";
  const Planned in_blocks = planner.planned("on");
  if (!in_blocks.has_ring) return plan;
  const auto most = static_cast<int64_t>(
      (1 - kRingSaving) * static_cast<double>(planner.planned("off").prediction.arena));
  double seconds = std::numeric_limits<double>::infinity();
  if (in_blocks.prediction.arena <= most) {
    plan.ring = "on";
    seconds = in_blocks.prediction.seconds();
  }
  const Planned in_zigzag = planner.planned("zigzag");
  if (in_zigzag.has_zigzag && in_zigzag.prediction.arena <= most &&
      in_zigzag.prediction.seconds() < seconds) {
    plan.ring = "zigzag";
  }
  return plan;
}

}  // namespace autosp::cli

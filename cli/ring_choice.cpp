#include "ring_choice.h"

#include <limits>

#include "prediction.h"

namespace autosp::cli {

PlanArguments with_ring_chosen(PlanArguments plan, const LoadedModel& model,
                               const RecomputeArguments& recompute, const cost::Device& device) {
  if (plan.ring != "auto") return plan;
  plan.ring = "on";
  if (!plan_model(model, plan).has_ring()) {
    plan.ring = "off";
    return plan;
  }
  RecomputeArguments fixed = recompute;
  if (budget_of(recompute) || recompute.policy == "auto") fixed.policy = "full";
  const auto predicted = [&](const char* ring) {
    plan.ring = ring;
    const shard::Plan planned = plan_model(model, plan);
    return predict(model,
                   with_recompute(transforms::build_program(planned), fixed, device, 0).program,
                   device);
  };
  const auto most =
      static_cast<int64_t>((1 - kRingSaving) * static_cast<double>(predicted("off").arena));
  std::string best = "off";
  double seconds = std::numeric_limits<double>::infinity();
  for (const char* ring : {"on", "zigzag"}) {
    const Prediction there = predicted(ring);
    if (there.arena > most || there.seconds() >= seconds) continue;
    best = ring;
    seconds = there.seconds();
  }
  plan.ring = best;
  return plan;
}

}  // namespace autosp::cli

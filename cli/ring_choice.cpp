#include "ring_choice.h"

#include <algorithm>

#include "rank_kinds.h"

namespace autosp::cli {

namespace {

int64_t planned_peak(const shard::Plan& plan, const RecomputeArguments& recompute,
                     const cost::Device& device) {
  const transforms::SpmdProgram program =
      with_recompute(transforms::build_program(plan), recompute, device, 0).program;
  int64_t peak = 0;
  for (int64_t rank : rank_kinds(program))
    peak = std::max(peak, compile_rank(program, rank).memory().arena);
  return peak;
}

}  // namespace

PlanArguments with_ring_chosen(PlanArguments plan, const LoadedModel& model,
                               const RecomputeArguments& recompute, const cost::Device& device) {
  if (plan.ring != "auto") return plan;
  plan.ring = "on";
  const shard::Plan ring = plan_model(model, plan);
  plan.ring = "off";
  if (!ring.has_ring()) return plan;
  RecomputeArguments fixed = recompute;
  if (budget_of(recompute) || recompute.policy == "auto") fixed.policy = "full";
  const int64_t gathered = planned_peak(plan_model(model, plan), fixed, device);
  const auto most = static_cast<int64_t>((1 - kRingSaving) * static_cast<double>(gathered));
  if (planned_peak(ring, fixed, device) <= most) plan.ring = "on";
  return plan;
}

}  // namespace autosp::cli

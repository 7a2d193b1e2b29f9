#include "recompute_arguments.h"

#include <algorithm>

#include "base/error.h"
#include "transforms/recompute/recompute.h"

namespace autosp::cli {

using transforms::RecomputePolicy;
using transforms::SpmdProgram;

void add_recompute_options(CLI::App& command, RecomputeArguments& arguments) {
  command
      .add_option("--recompute", arguments.policy,
                  "What the backward pass computes again instead of keeping it, from most memory to "
                  "least: none; mincut (default): cheap operators only; sac: all but layer inputs "
                  "and attention outputs; full: all but layer inputs")
      ->type_name("POLICY");
}

namespace {

RecomputePolicy parse_policy(const std::string& text) {
  std::vector<std::string> names;
  for (RecomputePolicy policy : {RecomputePolicy::kNone, RecomputePolicy::kMinCut,
                                 RecomputePolicy::kSac, RecomputePolicy::kFull}) {
    if (text == name_of(policy)) return policy;
    names.emplace_back(name_of(policy));
  }
  const std::string near = nearest_name(text, names);
  throw Error("--recompute takes {}, not '{}'", fmt::join(names, ", "), text)
      .help(near.empty() ? "leave it out for mincut" : fmt::format("did you mean '{}'?", near));
}

}  // namespace

RecomputedProgram with_recompute(const SpmdProgram& program, const RecomputeArguments& arguments) {
  const bool has_loss = program.plan->roles.loss.has_value();
  const RecomputePolicy policy = !arguments.policy.empty() ? parse_policy(arguments.policy)
                                 : has_loss                ? RecomputePolicy::kMinCut
                                                           : RecomputePolicy::kNone;
  onnx_io::ManifestRecompute summary{.policy = std::string(name_of(policy))};
  if (!has_loss && policy == RecomputePolicy::kNone) return {program, summary};
  const transforms::RecomputePlan plan = transforms::plan_recompute(program, policy);
  RecomputedProgram result{transforms::apply_recompute(program, plan), summary};
  result.summary.kept_bytes = plan.kept_bytes;
  result.summary.operators = std::ranges::count_if(
      result.program.instructions, [](const transforms::Instruction& instruction) {
        return phase_of(instruction) == transforms::Phase::kRecompute;
      });
  return result;
}

}  // namespace autosp::cli

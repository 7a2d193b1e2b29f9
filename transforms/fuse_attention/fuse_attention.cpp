#include "transforms/fuse_attention/fuse_attention.h"

#include "transforms/canonicalize/constants.h"
#include "transforms/fuse_attention/emit.h"

namespace autosp::transforms {

using ir::Graph;

std::string AttentionRegion::to_string() const {
  if (!fused) return fmt::format("{}: stays decomposed: {}", name, reason);
  std::string text = fmt::format(
      "{}: {}, {} heads over {} KV heads, {} x {} positions, scale {:.6g}", name,
      backward ? "forward and backward" : "forward", heads, kv_heads, queries, keys, scale);
  if (softcap != 0) text += fmt::format(", softcap {:.6g}", softcap);
  text += fmt::format(", mask: {}", mask);
  if (dropout != 0) text += fmt::format(", dropout {:.6g}", dropout);
  if (dead_rows != "none") text += fmt::format(", rows without a key: {}", dead_rows);
  return text;
}

FusedAttention fuse_attention(const Graph& graph, const shard::Roles& roles) {
  std::vector<bool> is_parameter = roles.is_parameter;
  const std::vector<bool> trained = find_parameter_constants(graph);
  for (size_t v = 0; v < is_parameter.size(); ++v) {
    if (trained[v]) is_parameter[v] = true;
  }
  const shard::FactorAnalysis analysis(graph, is_parameter);
  const shard::HomeClasses home = shard::find_home(analysis, roles);
  const fusion::GraphFacts facts(analysis, home, is_parameter);

  FusedAttention result;
  std::vector<std::unique_ptr<fusion::RegionPlan>> plans;
  std::vector<size_t> region_of_plan;
  fusion::MaskMemo memo;
  for (const fusion::Region& region : fusion::find_regions(facts)) {
    const NodeId first = region.born.empty() ? region.nodes[0] : region.born[0];
    AttentionRegion report{.name = graph.name_of(graph.node(first).outputs[0])};
    try {
      std::unique_ptr<fusion::RegionPlan> plan = fusion::plan_region(facts, region, memo);
      plan->report.name = report.name;
      report = plan->report;
      region_of_plan.push_back(result.regions.size());
      plans.push_back(std::move(plan));
    } catch (const fusion::Refused& refused) {
      report.reason = refused.reason;
    }
    result.regions.push_back(std::move(report));
  }
  std::vector<const fusion::RegionPlan*> candidates;
  for (const auto& plan : plans) candidates.push_back(plan.get());
  const std::vector<std::string> cycles = fusion::find_cycles(facts, candidates);
  std::vector<const fusion::RegionPlan*> accepted;
  for (size_t p = 0; p < plans.size(); ++p) {
    if (cycles[p].empty()) {
      accepted.push_back(plans[p].get());
      continue;
    }
    AttentionRegion& report = result.regions[region_of_plan[p]];
    report = {.name = report.name, .reason = cycles[p]};
  }
  result.graph = fusion::replace_regions(facts, accepted);
  return result;
}

}  // namespace autosp::transforms

// What `explain` says of a value.
#include <algorithm>
#include <set>

#include "shard/plan.h"

namespace autosp::shard {

namespace {

std::string alternative_on_queries(const Plan& plan, NodeId node) {
  if (plan.is_on_ring(node))
    return "alternative (split by query positions; keys and values travel around a ring)";
  std::string text = "alternative (split by query positions, whole keys and values)";
  const auto refusal = std::ranges::find(plan.ring_refusals, node, &RingRefusal::node);
  if (refusal != plan.ring_refusals.end()) text += ": no ring, since " + refusal->reason;
  return text;
}

}  // namespace

std::string explain(const Plan& plan, ValueId value) {
  const ir::Graph& graph = plan.graph();
  const ir::Value& info = graph.value(value);
  std::string text =
      fmt::format("{}: {}\n  factors  {}\n  layout   {}\n", info.name, ir::to_string(info.type),
                  plan.analysis->describe_dims(plan.analysis->dims(value)),
                  to_string(plan.value_layout(value), plan.mesh));
  if (info.kind != ir::ValueKind::kResult) {
    text += "  it is an input or a constant: every rank has it and takes its part at no cost\n";
    return text;
  }
  const ir::Node& node = graph.node(info.producer);
  const auto result = static_cast<size_t>(info.result_index);
  text += fmt::format("  made by  {}\n", graph.describe(node));
  if (const auto rule = rule_of(graph, node))
    text += fmt::format("  rule     {}\n", rule->to_string());
  for (size_t k = 0; k < plan.axes.size(); ++k) {
    const AxisPlan& axis = plan.axes[k];
    const auto& strategies = axis.strategies[info.producer.index()];
    const bool home = axis.labels[info.producer.index()] == Label::kHome;
    text += fmt::format(
        "  axis {} ({} ranks): {}\n", plan.mesh.axes()[k].name, plan.mesh.axes()[k].size,
        axis.gathered[info.producer.index()]
            ? "gathered: it can be split neither by home nor by the alternative"
        : home ? "at home (split by the sequence or batch where it has one)"
        : plan.mesh.axes()[k].name == "r" ? alternative_on_queries(plan, info.producer)
                                          : "alternative (split by heads, whole sequence)");
    for (size_t label : {0, 1}) {
      const char* name = label == 0 ? "home       " : "alternative";
      if (!strategies[label]) {
        text += fmt::format("    {}  not possible\n", name);
        continue;
      }
      std::vector<std::string> readers;
      int64_t bytes = 0;
      std::set<AxisLayout> seen;
      for (size_t n = 0; n < graph.nodes().size(); ++n) {
        const ir::Node& reader = graph.nodes()[n];
        for (size_t i = 0; i < reader.inputs.size(); ++i) {
          if (reader.inputs[i] != value || !plan.analysis->node(NodeId(n)).is_data[i]) continue;
          const AxisLayout& needed = axis.chosen(NodeId(n)).operands[i];
          if (!seen.insert(needed).second) continue;
          bytes += reshard_bytes(strategies[label]->results[result], needed, info.type.num_bytes(),
                                 plan.mesh.axes()[k].size);
        }
      }
      text += fmt::format("    {}  made as {}; its readers then cost {} per rank\n", name,
                          to_string(strategies[label]->results[result]),
                          bytes >= kImpossible ? std::string("more than is possible")
                                               : format_bytes(static_cast<double>(bytes)));
    }
  }
  return text;
}

}  // namespace autosp::shard

#include "transforms/fuse_attention/cutout.h"

#include <algorithm>

namespace autosp::transforms::fusion {

using ir::Graph;
using ir::Node;

std::string_view name_of(OperandRole role) {
  switch (role) {
    case OperandRole::kQuery:
      return "query";
    case OperandRole::kKey:
      return "key";
    case OperandRole::kValue:
      return "value";
    case OperandRole::kOutputGradient:
      return "output_gradient";
  }
  return "";
}

std::string_view name_of(ResultRole role) {
  switch (role) {
    case ResultRole::kOutput:
      return "output";
    case ResultRole::kQueryGradient:
      return "query_gradient";
    case ResultRole::kKeyGradient:
      return "key_gradient";
    case ResultRole::kValueGradient:
      return "value_gradient";
    case ResultRole::kBiasGradient:
      return "bias_gradient";
    case ResultRole::kSinkGradient:
      return "sink_gradient";
    case ResultRole::kScaleGradient:
      return "scale_gradient";
  }
  return "";
}

namespace {

// Mask expressions are small; a larger one is kept as it is computed.
constexpr int kMostMaskNodes = 120;

// One step of a chain: the node, and which of its operands it goes on with.
struct Step {
  NodeId node;
  size_t operand = 0;
};

class Cutter {
 public:
  Cutter(const GraphFacts& facts, const Region& region, const RegionRoles* roles)
      : facts_(facts), graph_(facts.graph()), region_(region), roles_(roles) {
    cutout_.nodes = region.nodes;
  }

  Cutout cut() {
    for (const NodeId id : region_.nodes) copy_region_node(id);
    if (roles_ != nullptr) push_down_results();
    return std::move(cutout_);
  }

 private:
  ValueId record(ValueId inside, ValueId original) {
    cutout_.original.resize(cutout_.graph.values().size());
    cutout_.original[inside.index()] = original;
    return inside;
  }

  ValueId add_input(ValueId root) {
    return record(
        cutout_.graph.add_input(cutout_.graph.fresh_name(graph_.name_of(root)), graph_.type(root)),
        root);
  }

  // A copy of `node` on these operands; returns its first result.
  ValueId copy(const Node& node, std::vector<ValueId> operands) {
    std::vector<ir::Type> types;
    std::vector<std::string> names;
    for (ValueId output : node.outputs) {
      types.push_back(output ? graph_.type(output) : ir::Type{});
      names.push_back(output ? graph_.name_of(output) : "");
    }
    const NodeId id = cutout_.graph.add_node(node.op, std::move(operands), std::move(types),
                                             node.attributes, node.domain, std::move(names));
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (node.outputs[k]) record(cutout_.graph.node(id).outputs[k], node.outputs[k]);
    }
    return cutout_.graph.node(id).outputs[0];
  }

  bool is_data(NodeId id, size_t k) const { return facts_.analysis().node(id).is_data[k]; }

  // Shapes and axes; uniform numbers, which may be of any size and are not written out.
  std::optional<ValueId> simple_operand(NodeId id, size_t k) {
    const ValueId value = graph_.node(id).inputs[k];
    if (!value) return ValueId();
    if (!is_data(id, k)) {
      if (!graph_.is_constant(value)) {
        refuse("{} has the computed shape '{}'", graph_.describe(graph_.node(id)),
               graph_.name_of(value));
      }
      return record(cutout_.graph.add_constant(graph_.constant(value)), value);
    }
    if (const auto uniform = facts_.uniform(value)) {
      const ValueId input = add_input(value);
      cutout_.uniform[input] = *uniform;
      return input;
    }
    return std::nullopt;
  }

  void copy_region_node(NodeId id) {
    const Node& node = graph_.node(id);
    if (!facts_.analysis().node(id).opaque.empty()) {
      refuse("{}: {}", graph_.describe(node), facts_.analysis().node(id).opaque);
    }
    if (!is_known_inside(node)) {
      refuse("'{}' is computed by {}", graph_.name_of(node.outputs[0]), node.op);
    }
    std::vector<ValueId> operands;
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      const auto known = cutout_.inside.find(node.inputs[k]);
      if (known != cutout_.inside.end()) {
        operands.push_back(known->second);
      } else if (const auto simple = simple_operand(id, k)) {
        operands.push_back(*simple);
      } else if (is_contraction(node)) {
        operands.push_back(contraction_operand(id, k));
      } else {
        operands.push_back(term_operand(node.inputs[k]));
      }
    }
    copy(node, std::move(operands));
    const Node& made = cutout_.graph.nodes().back();
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (node.outputs[k]) cutout_.inside[node.outputs[k]] = made.outputs[k];
    }
  }

  // The black box knows how these depend on sizes.
  static bool is_known_inside(const Node& node) {
    return is_contraction(node) || is_elementwise(node) || is_view(node) || node.is("Expand") ||
           node.is("Softmax") || node.is("ReduceSum") || node.is("ReduceMax") || node.is("Pad") ||
           node.is("Slice");
  }

  bool may_pass(NodeId id) const {
    return id && facts_.analysis().node(id).opaque.empty() &&
           !std::ranges::binary_search(region_.nodes, id);
  }

  // The operand through which a value is pulled up to what it is a rearranged, scaled or converted
  // copy of.
  std::optional<size_t> step_of_operand(NodeId id) const {
    const Node& node = graph_.node(id);
    if (is_view(node) || node.is("Expand") || node.is("Neg")) return 0;
    if (node.is("Cast")) {
      const bool both = is_floating(graph_.type(node.inputs[0]).dtype) &&
                        is_floating(graph_.type(node.outputs[0]).dtype);
      return both ? std::optional<size_t>(0) : std::nullopt;
    }
    if (node.is("Mul") || node.is("Div")) {
      if (facts_.uniform(node.inputs[1])) return 0;
      if (node.is("Mul") && facts_.uniform(node.inputs[0])) return 1;
    }
    return std::nullopt;
  }

  // Copies the chain from the root's copy `top` down.
  ValueId copy_chain(ValueId top, const std::vector<Step>& steps) {
    ValueId value = top;
    for (size_t s = steps.size(); s-- > 0;) {
      const Node& node = graph_.node(steps[s].node);
      std::vector<ValueId> operands;
      for (size_t k = 0; k < node.inputs.size(); ++k) {
        operands.push_back(k == steps[s].operand ? value : *simple_operand(steps[s].node, k));
      }
      value = copy(node, std::move(operands));
    }
    return value;
  }

  ValueId contraction_operand(NodeId id, size_t k) {
    ValueId root = graph_.node(id).inputs[k];
    std::vector<Step> steps;
    while (may_pass(facts_.producer(root))) {
      const NodeId above = facts_.producer(root);
      const auto operand = step_of_operand(above);
      if (!operand) break;
      steps.push_back({above, *operand});
      root = graph_.node(above).inputs[*operand];
    }
    const OperandPlace place{id, k};
    const ValueId top = input_for(place, root);
    cutout_.operands[place] = top;
    cutout_.roots[place] = root;
    return copy_chain(top, steps);
  }

  ValueId input_for(const OperandPlace& place, ValueId root) {
    if (roles_ == nullptr) return add_input(root);
    const OperandRole role = roles_->operands.at(place);
    const auto [entry, is_new] = input_of_role_.try_emplace(role);
    if (is_new) {
      entry->second = add_input(root);
    } else {
      const ValueId first = cutout_.original[entry->second.index()];
      if (facts_.representative(first) != facts_.representative(root)) {
        refuse("'{}' and '{}' would both be the {}", graph_.name_of(first), graph_.name_of(root),
               name_of(role));
      }
    }
    return entry->second;
  }

  ValueId term_operand(ValueId use) {
    ValueId root = use;
    std::vector<Step> steps;
    while (may_pass(facts_.producer(root))) {
      const NodeId above = facts_.producer(root);
      const Node& node = graph_.node(above);
      if (!is_view(node) && !node.is("Expand") && !node.is("Not")) break;
      steps.push_back({above, 0});
      root = node.inputs[0];
    }
    int budget = kMostMaskNodes;
    const ValueId inside = expand_mask(root, budget);
    cutout_.terms.push_back({.inside = inside, .root = root});
    return copy_chain(inside, steps);
  }

  static bool is_comparison(const Node& node) {
    return node.is("Less") || node.is("LessOrEqual") || node.is("Greater") ||
           node.is("GreaterOrEqual");
  }

  // A copy of what computes a quadratic value from values that are not, nor repeated; and of a
  // comparison that is one of two conditions (`of_two`): as a mask over keys it says too little.
  ValueId expand_mask(ValueId value, int& budget, bool of_two = false) {
    const NodeId id = facts_.producer(value);
    const bool may = may_pass(id) && --budget > 0;
    const bool repeats = may && (is_view(graph_.node(id)) || graph_.node(id).is("Expand"));
    const bool expands =
        repeats || (may && facts_.home_positions(value) >= 2 && is_elementwise(graph_.node(id))) ||
        (may && of_two && is_comparison(graph_.node(id)));
    if (!expands) {
      const ValueId input = add_input(value);
      cutout_.leaves.push_back(input);
      return input;
    }
    const Node& node = graph_.node(id);
    const bool leads_to_two = node.is("Or") || (repeats && of_two);
    std::vector<ValueId> operands;
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      const auto simple = simple_operand(id, k);
      operands.push_back(simple ? *simple : expand_mask(node.inputs[k], budget, leads_to_two));
    }
    return copy(node, std::move(operands));
  }

  // A result leaves the region after the views, conversions and scalings that follow it, and a
  // gradient of keys or values after the sum over the query heads that share them.
  void push_down_results() {
    for (const auto& [role, contraction] : roles_->results) {
      ValueId value = graph_.node(contraction).outputs[0];
      while (const auto next = step_down(value, role)) {
        cutout_.nodes.push_back(*next);
        copy_region_node(*next);
        value = graph_.node(*next).outputs[0];
      }
      cutout_.results[role] = cutout_.inside.at(value);
      cutout_.result_of[role] = value;
    }
    std::ranges::sort(cutout_.nodes);
  }

  std::optional<NodeId> step_down(ValueId value, ResultRole role) const {
    std::vector<NodeId> readers = facts_.readers(value);
    if (role == ResultRole::kBiasGradient) {  // which the scores' gradient is computed from as well
      std::erase_if(readers, [&](NodeId reader) {
        return std::ranges::binary_search(region_.nodes, reader);
      });
    }
    if (facts_.is_output(value) || readers.size() != 1) return std::nullopt;
    const NodeId id = readers[0];
    const Node& node = graph_.node(id);
    if (!may_pass(id)) return std::nullopt;
    const bool of_rows = role == ResultRole::kSinkGradient || role == ResultRole::kScaleGradient;
    if (node.is("ReduceSum") && of_rows) {
      return sums_over_rows(id) ? std::optional<NodeId>(id) : std::nullopt;
    }
    if (node.is("ReduceSum") && role == ResultRole::kBiasGradient) {
      return keeps_positions(id) ? std::optional<NodeId>(id) : std::nullopt;
    }
    if (node.is("ReduceSum")) {
      const bool summed = role == ResultRole::kKeyGradient || role == ResultRole::kValueGradient;
      if (summed && sums_over_groups(id, role)) return id;
      return std::nullopt;
    }
    const auto operand = step_of_operand(id);
    if (!operand || node.is("Expand") || node.inputs[*operand] != value) return std::nullopt;
    return id;
  }

  // Whether it sums over batch and queries alone.
  bool sums_over_rows(NodeId id) const {
    const shard::FactorAnalysis& analysis = facts_.analysis();
    return std::ranges::all_of(analysis.node(id).factors, [&](const shard::Factor& factor) {
      const shard::ClassId c = analysis.class_of(factor.atom);
      return factor.role != shard::Role::kReduction || facts_.home().sequence.contains(c) ||
             facts_.home().batch.contains(c);
    });
  }

  // Whether it sums over neither queries nor keys.
  bool keeps_positions(NodeId id) const {
    const shard::FactorAnalysis& analysis = facts_.analysis();
    return std::ranges::none_of(analysis.node(id).factors, [&](const shard::Factor& factor) {
      return factor.role == shard::Role::kReduction &&
             facts_.home().sequence.contains(analysis.class_of(factor.atom));
    });
  }

  // Whether every summed index is one that the root of K (of V) lacks.
  bool sums_over_groups(NodeId id, ResultRole role) const {
    const OperandRole wanted =
        role == ResultRole::kKeyGradient ? OperandRole::kKey : OperandRole::kValue;
    const ValueId input = input_of_role_.at(wanted);
    const ValueId root = cutout_.original[input.index()];
    const shard::FactorAnalysis& analysis = facts_.analysis();
    std::vector<shard::AtomId> held;
    for (const auto& atoms : analysis.dims(root))
      held.insert(held.end(), atoms.begin(), atoms.end());
    bool any = false;
    for (const shard::Factor& factor : analysis.node(id).factors) {
      if (factor.role != shard::Role::kReduction) continue;
      any = true;
      if (facts_.home().sequence.contains(analysis.class_of(factor.atom))) return false;
      if (std::ranges::find(held, factor.atom) != held.end()) return false;
    }
    return any;
  }

  const GraphFacts& facts_;
  const Graph& graph_;
  const Region& region_;
  const RegionRoles* roles_;
  Cutout cutout_;
  std::map<OperandRole, ValueId> input_of_role_;
};

}  // namespace

Cutout cut_out(const GraphFacts& facts, const Region& region, const RegionRoles* roles) {
  return Cutter(facts, region, roles).cut();
}

}  // namespace autosp::transforms::fusion

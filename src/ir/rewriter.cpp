#include "ir/rewriter.h"

#include <algorithm>

#include "ir/operator_traits.h"

namespace autosp::ir {

namespace {

ValueId copy_leaf(const Value& value, Graph& to) {
  switch (value.kind) {
    case ValueKind::kInput:
      return to.add_input(value.name, value.type);
    case ValueKind::kConstant:
      return to.add_named_constant(value.name, value.constant);
    case ValueKind::kExternal:
      return to.add_external(value.name, value.type, value.external);
    case ValueKind::kResult:
      break;
  }
  return {};
}

NodeId copy_node(const Graph& from, const Node& node, std::vector<ValueId> inputs, Graph& to) {
  std::vector<Type> types;
  std::vector<std::string> names;
  for (ValueId output : node.outputs) {
    types.push_back(output ? from.type(output) : Type{});
    names.push_back(output ? from.name_of(output) : "");
  }
  const NodeId id = to.add_node(node.op, std::move(inputs), std::move(types), node.attributes,
                                node.domain, std::move(names), node.name);
  to.set_origin(id, node.origin);
  to.set_phase(id, node.phase);
  return id;
}

// And room for as many values and nodes.
void copy_header(const Graph& from, Graph& to) {
  to.reserve(from.values().size(), from.nodes().size());
  to.name = from.name;
  to.opset = from.opset;
  to.metadata = from.metadata;
  to.declared_parameters = from.declared_parameters;
}

// What the outputs need, and collectives, which every rank takes part in.
struct Liveness {
  std::vector<bool> values;
  std::vector<bool> nodes;

  Liveness(const Graph& graph, const std::vector<Output>& outputs)
      : values(graph.values().size(), false), nodes(graph.nodes().size(), false) {
    for (const Output& output : outputs) values[output.value.index()] = true;
    for (size_t n = nodes.size(); n-- > 0;) {
      const Node& node = graph.nodes()[n];
      nodes[n] = is_collective(node) || is_foreign_collective(node);
      for (ValueId output : node.outputs) {
        if (output && values[output.index()]) nodes[n] = true;
      }
      if (!nodes[n]) continue;
      for (ValueId input : node.inputs) {
        if (input) values[input.index()] = true;
      }
    }
  }
};

// Whether a node or a constant is not needed for the graph's outputs.
bool has_dead_parts(const Graph& graph) {
  const Liveness live(graph, graph.outputs());
  if (std::ranges::find(live.nodes, false) != live.nodes.end()) return true;
  for (size_t v = 0; v < live.values.size(); ++v) {
    const ValueKind kind = graph.values()[v].kind;
    if (!live.values[v] && kind != ValueKind::kInput && kind != ValueKind::kResult) return true;
  }
  return false;
}

}  // namespace

Rewriter::Rewriter(const Graph& from) : from_(&from), builder_(to_), map_(from.values().size()) {
  copy_header(from, to_);
  for (size_t v = 0; v < from.values().size(); ++v) {
    map_[v] = copy_leaf(from.values()[v], to_);
  }
}

ValueId Rewriter::mapped(ValueId old_value) const {
  if (!old_value) return {};
  const ValueId result = map_[old_value.index()];
  AUTOSP_CHECK(result.valid(), "'{}' has not been mapped", from_->name_of(old_value));
  return result;
}

std::vector<ValueId> Rewriter::mapped(const std::vector<ValueId>& old_values) const {
  std::vector<ValueId> result;
  result.reserve(old_values.size());
  for (ValueId value : old_values) result.push_back(mapped(value));
  return result;
}

void Rewriter::map(ValueId old_value, ValueId new_value) {
  if (old_value) map_[old_value.index()] = new_value;
}

NodeId Rewriter::copy(const Node& node, std::vector<ValueId> inputs) {
  const NodeId id = copy_node(*from_, node, std::move(inputs), to_);
  for (size_t k = 0; k < node.outputs.size(); ++k) map(node.outputs[k], to_.node(id).outputs[k]);
  return id;
}

Graph Rewriter::finish() && {
  for (const Output& output : from_->outputs()) to_.add_output(output.name, mapped(output.value));
  if (has_dead_parts(to_)) to_ = without_dead_nodes(to_);
  verify(to_);
  return std::move(to_);
}

Graph rewrite_nodes(const Graph& graph,
                    const std::function<bool(Rewriter&, const Node&)>& rewrite) {
  Rewriter rewriter(graph);
  for (const Node& node : graph.nodes()) {
    if (!rewrite(rewriter, node)) rewriter.copy(node);
  }
  return std::move(rewriter).finish();
}

Graph initializers_as_inputs(const Graph& graph, const std::set<std::string>& names) {
  Graph result;
  copy_header(graph, result);
  std::vector<ValueId> map(graph.values().size());
  for (ValueId input : graph.inputs()) {
    map[input.index()] = result.add_input(graph.name_of(input), graph.type(input));
  }
  for (size_t v = 0; v < graph.values().size(); ++v) {
    const Value& value = graph.values()[v];
    if (value.kind == ValueKind::kInput || value.kind == ValueKind::kResult) continue;
    map[v] = names.contains(value.name) ? result.add_input(value.name, value.type)
                                        : copy_leaf(value, result);
  }
  for (const Node& node : graph.nodes()) {
    std::vector<ValueId> inputs;
    for (ValueId input : node.inputs) inputs.push_back(input ? map[input.index()] : ValueId());
    const NodeId id = copy_node(graph, node, std::move(inputs), result);
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (node.outputs[k]) map[node.outputs[k].index()] = result.node(id).outputs[k];
    }
  }
  for (const Output& output : graph.outputs()) {
    result.add_output(output.name, map[output.value.index()]);
  }
  verify(result);
  return result;
}

Graph without_dead_nodes(const Graph& graph) { return with_interface(graph, graph.outputs(), {}); }

Graph with_interface(const Graph& graph, const std::vector<Output>& outputs,
                     const std::unordered_set<std::string>& dropped_inputs) {
  const Liveness live(graph, outputs);
  Graph result;
  copy_header(graph, result);
  std::vector<ValueId> map(graph.values().size());
  for (size_t v = 0; v < graph.values().size(); ++v) {
    const Value& value = graph.values()[v];
    const bool dropped = value.kind == ValueKind::kInput && dropped_inputs.contains(value.name);
    AUTOSP_CHECK(!dropped || !live.values[v], "input '{}' is still needed", value.name);
    if (live.values[v] || (value.kind == ValueKind::kInput && !dropped)) {
      map[v] = copy_leaf(value, result);
    }
  }
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    if (!live.nodes[n]) continue;
    const Node& node = graph.nodes()[n];
    std::vector<ValueId> inputs;
    for (ValueId input : node.inputs) inputs.push_back(input ? map[input.index()] : ValueId());
    const NodeId id = copy_node(graph, node, std::move(inputs), result);
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (node.outputs[k]) map[node.outputs[k].index()] = result.node(id).outputs[k];
    }
  }
  for (const Output& output : outputs) {
    result.add_output(output.name, map[output.value.index()]);
  }
  return result;
}

}  // namespace autosp::ir

#include "transforms/fuse_attention/graph_facts.h"

#include <algorithm>
#include <unordered_map>

#include "transforms/canonicalize/constants.h"
#include "transforms/canonicalize/node_key.h"

namespace autosp::transforms::fusion {

using ir::Graph;
using ir::Node;

bool is_contraction(const Node& node) { return node.is("MatMul") || node.is("Gemm"); }

bool is_view(const Node& node) {
  static const std::unordered_set<std::string> kOps = {"Reshape",   "Transpose", "Squeeze",
                                                       "Unsqueeze", "Flatten",   "Identity"};
  return node.domain.empty() && kOps.contains(node.op);
}

bool is_elementwise(const Node& node) {
  static const std::unordered_set<std::string> kOps = {
      "Add",   "Sub",        "Mul",   "Div",     "Neg",     "Exp",  "Log",         "Max",
      "Min",   "Where",      "Not",   "And",     "Or",      "Xor",  "Equal",       "Less",
      "Sqrt",  "Reciprocal", "Tanh",  "Sigmoid", "Clip",    "Pow",  "LessOrEqual", "Greater",
      "IsNaN", "IsInf",      "Abs",   "Sign",    "Sum",     "Mean", "Cast",        "GreaterOrEqual",
      "Floor", "Ceil",       "Round", "Mod",     "Softplus"};
  return node.domain.empty() && kOps.contains(node.op);
}

namespace {

int count_home(const GraphFacts& facts, ValueId value) {
  int count = 0;
  for (const shard::AtomList& atoms : facts.analysis().dims(value)) {
    for (const shard::AtomId atom : atoms) {
      if (facts.home().sequence.contains(facts.analysis().class_of(atom))) ++count;
    }
  }
  return count;
}

}  // namespace

GraphFacts::GraphFacts(const shard::FactorAnalysis& analysis, const shard::HomeClasses& home,
                       const std::vector<bool>& is_parameter)
    : analysis_(&analysis),
      home_(&home),
      home_positions_(graph().values().size(), 0),
      core_(graph().values().size(), false),
      tail_(graph().nodes().size(), true),
      output_(graph().values().size(), false),
      readers_(consumers(graph())),
      representative_(graph().values().size()),
      uniform_(graph().values().size()) {
  for (size_t v = 0; v < home_positions_.size(); ++v) {
    home_positions_[v] = count_home(*this, ValueId(v));
  }
  for (const ir::Output& output : graph().outputs()) output_[output.value.index()] = true;
  find_core();
  find_tails();
  find_representatives(is_parameter);
  find_uniform(is_parameter);
}

bool GraphFacts::makes_pairs(const Node& node) const {
  const int made = home_positions(node.outputs[0]);
  return is_contraction(node) && made >= 2 && made > home_positions(node.inputs[0]) &&
         made > home_positions(node.inputs[1]);
}

void GraphFacts::find_core() {
  for (const Node& node : graph().nodes()) {
    const bool from_core = std::ranges::any_of(
        node.inputs, [&](ValueId input) { return input && core_[input.index()]; });
    if (is_contraction(node) ? !makes_pairs(node) : !from_core) continue;
    for (ValueId output : node.outputs) {
      if (output && home_positions(output) >= 2) core_[output.index()] = true;
    }
  }
}

bool GraphFacts::sums_pairs(const Node& node) const {
  const int left = home_positions(node.outputs[0]);
  if (!is_contraction(node) || left == 0) return false;
  const auto core = [&](size_t k) { return core_[node.inputs[k].index()]; };
  if (core(0) && core(1)) return true;
  if (!core(0) && !core(1)) return false;
  const size_t pairs = core(0) ? 0 : 1;
  const int had = home_positions(node.inputs[pairs]);
  return left < had && home_positions(node.inputs[1 - pairs]) < had;
}

namespace {

// What a value is a view of.
ValueId viewed(const Graph& graph, ValueId value) {
  const Node* node = graph.producer(value);
  while (node != nullptr && is_view(*node)) {
    value = node->inputs[0];
    node = graph.producer(value);
  }
  return value;
}

}  // namespace

bool GraphFacts::is_mixed_and_normalised(const Node& node) const {
  if (!is_contraction(node)) return false;
  const int made = home_positions(node.outputs[0]);
  const int had = std::max(home_positions(node.inputs[0]), home_positions(node.inputs[1]));
  if (made < 2 || made != had) return false;
  std::unordered_set<ValueId> reached = {node.outputs[0]};
  std::vector<ValueId> open = {node.outputs[0]};
  while (!open.empty()) {
    const ValueId value = open.back();
    open.pop_back();
    for (const NodeId reader : readers(value)) {
      const Node& next = graph().node(reader);
      if (next.is("Softmax") || next.is("LogSoftmax") || next.is("Exp")) return true;
      const bool follows = is_elementwise(next) || is_view(next) || next.is("Expand");
      const bool meets_core = std::ranges::any_of(
          next.inputs, [&](ValueId input) { return input && core_[input.index()]; });
      if (follows && !meets_core && reached.insert(next.outputs[0]).second) {
        open.push_back(next.outputs[0]);
      }
    }
  }
  return false;
}

// Walks back from contractions of core values and reductions of them to rows. What computes a bias
// from pairs gives its weights gradients that sum the bias's over both positions: these belong to
// no attention.
void GraphFacts::find_tails() {
  std::unordered_set<ValueId> bias_gradients;
  for (const Node& node : graph().nodes()) {
    if (!is_contraction(node) || sums_pairs(node)) continue;
    for (const size_t k : {size_t{0}, size_t{1}}) {
      if (core_[node.inputs[k].index()]) bias_gradients.insert(viewed(graph(), node.inputs[k]));
    }
  }
  std::vector<bool> leads(graph().values().size(), false);
  for (size_t n = graph().nodes().size(); n-- > 0;) {
    const Node& node = graph().nodes()[n];
    const bool reads_core = std::ranges::any_of(
        node.inputs, [&](ValueId input) { return input && core_[input.index()]; });
    const bool reduces = node.op.starts_with("Reduce") && !core_[node.outputs[0].index()] &&
                         !(home_positions(node.outputs[0]) == 0 &&
                           bias_gradients.contains(viewed(graph(), node.inputs[0])));
    const bool ends = reads_core && (sums_pairs(node) || reduces || is_mixed_and_normalised(node));
    tail_[n] = !ends && std::ranges::none_of(node.outputs, [&](ValueId output) {
      return output && core_[output.index()] && leads[output.index()];
    });
    if (tail_[n]) continue;
    for (ValueId input : node.inputs) {
      if (input) leads[input.index()] = true;
    }
  }
  for (size_t v = 0; v < core_.size(); ++v) {
    if (!leads[v]) core_[v] = false;
  }
}

void GraphFacts::find_representatives(const std::vector<bool>& is_parameter) {
  std::unordered_map<std::string, ValueId> constants;
  for (size_t v = 0; v < representative_.size(); ++v) {
    const ir::Value& value = graph().values()[v];
    representative_[v] = ValueId(v);
    if (value.kind != ir::ValueKind::kConstant || is_parameter[v]) continue;
    if (value.type.num_bytes() > kComparedConstantBytes) continue;
    representative_[v] = constants.emplace(constant_key(value.constant), ValueId(v)).first->second;
  }
  std::unordered_map<std::string, const Node*> seen;
  for (const Node& node : graph().nodes()) {
    if (is_random(node) || node.domain == ir::kAutospDomain) continue;
    std::vector<ValueId> operands;
    for (ValueId input : node.inputs) {
      operands.push_back(input ? representative_[input.index()] : ValueId());
    }
    const Node* first = seen.emplace(node_key(graph(), node, operands), &node).first->second;
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (node.outputs[k]) representative_[node.outputs[k].index()] = first->outputs[k];
    }
  }
}

void GraphFacts::find_uniform(const std::vector<bool>& is_parameter) {
  for (size_t v = 0; v < uniform_.size(); ++v) {
    if (!is_parameter[v]) uniform_[v] = uniform_constant(graph(), ValueId(v));
  }
  for (const Node& node : graph().nodes()) {
    std::optional<double> value;
    if (node.is("ConstantOfShape")) {
      const ir::Tensor* fill = node.attributes.get_tensor("value");
      value = fill == nullptr ? 0.0 : fill->value_as_double(0);
    } else if (is_view(node) || node.is("Expand")) {
      value = uniform(node.inputs[0]);
    } else if (node.is("Cast")) {
      const auto from = uniform(node.inputs[0]);
      const bool same = is_floating(graph().type(node.outputs[0]).dtype) || from == 0.0;
      if (from && (same || from == 1.0)) value = from;
    }
    if (value) uniform_[node.outputs[0].index()] = value;
  }
}

namespace {

// Sets of values, joined when one operator touches both.
class Components {
 public:
  explicit Components(size_t count) : parent_(count) {
    for (size_t v = 0; v < count; ++v) parent_[v] = v;
  }
  size_t find(size_t v) {
    while (parent_[v] != v) v = parent_[v] = parent_[parent_[v]];
    return v;
  }
  void join(size_t a, size_t b) { parent_[find(b)] = find(a); }

 private:
  std::vector<size_t> parent_;
};

std::vector<ValueId> core_values_of(const GraphFacts& facts, const Node& node) {
  std::vector<ValueId> found;
  for (const auto* list : {&node.inputs, &node.outputs}) {
    for (ValueId value : *list) {
      if (value && facts.is_core(value)) found.push_back(value);
    }
  }
  return found;
}

// Operators between a row that a reduction of the region makes and an operand of the region.
void close_over_rows(const GraphFacts& facts, Region& region) {
  const Graph& graph = facts.graph();
  std::unordered_set<NodeId> inside(region.nodes.begin(), region.nodes.end());
  std::vector<ValueId> frontier;
  for (const NodeId id : region.nodes) {
    const Node& node = graph.node(id);
    if (is_contraction(node)) continue;
    for (ValueId output : node.outputs) {
      if (output && !facts.is_core(output)) frontier.push_back(output);
    }
  }
  std::unordered_set<ValueId> reached(frontier.begin(), frontier.end());
  // A few operators separate a row from its way back; a longer way is not a normalisation.
  for (int depth = 0; depth < 8 && !frontier.empty(); ++depth) {
    std::vector<ValueId> next;
    for (ValueId value : frontier) {
      for (const NodeId reader : facts.readers(value)) {
        const Node& node = graph.node(reader);
        const bool followed = is_elementwise(node) || is_view(node) || node.is("Expand");
        if (inside.contains(reader) || !followed) continue;
        if (reached.insert(node.outputs[0]).second) next.push_back(node.outputs[0]);
      }
    }
    frontier = std::move(next);
  }
  std::vector<ValueId> wanted;
  for (const NodeId id : region.nodes) {
    for (ValueId input : graph.node(id).inputs) {
      if (input && reached.contains(input)) wanted.push_back(input);
    }
  }
  while (!wanted.empty()) {
    const NodeId id = facts.producer(wanted.back());
    wanted.pop_back();
    if (!id || !inside.insert(id).second) continue;
    region.nodes.push_back(id);
    for (ValueId input : graph.node(id).inputs) {
      if (input && reached.contains(input)) wanted.push_back(input);
    }
  }
  std::ranges::sort(region.nodes);
}

}  // namespace

std::vector<Region> find_regions(const GraphFacts& facts) {
  const Graph& graph = facts.graph();
  Components components(graph.values().size());
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    if (facts.is_tail(NodeId(n))) continue;
    const auto touched = core_values_of(facts, graph.nodes()[n]);
    for (size_t k = 1; k < touched.size(); ++k) {
      components.join(touched[0].index(), touched[k].index());
    }
  }
  std::vector<Region> regions;
  std::unordered_map<size_t, size_t> region_of;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    const auto touched = core_values_of(facts, node);
    if (touched.empty() || facts.is_tail(NodeId(n))) continue;
    const size_t root = components.find(touched[0].index());
    const auto [entry, is_new] = region_of.emplace(root, regions.size());
    if (is_new) regions.emplace_back();
    Region& region = regions[entry->second];
    region.nodes.emplace_back(n);
    if (!is_contraction(node)) continue;
    const bool takes_core = std::ranges::any_of(
        node.inputs, [&](ValueId input) { return input && facts.is_core(input); });
    const bool makes_core = facts.is_core(node.outputs[0]);
    if (!takes_core) region.born.emplace_back(n);
    if (!makes_core) region.ending.emplace_back(n);
  }
  for (Region& region : regions) close_over_rows(facts, region);
  return regions;
}

}  // namespace autosp::transforms::fusion

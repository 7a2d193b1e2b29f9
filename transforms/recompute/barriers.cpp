#include "transforms/recompute/barriers.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "ir/rewriter.h"
#include "transforms/spmd/program.h"

namespace autosp::transforms {

using ir::Builder;
using ir::Graph;
using ir::Node;

namespace {

constexpr const char* kBarrier = "RecomputeBarrier";

bool is_recomputed(const Node& node) { return node.phase == name_of(Phase::kRecompute); }

// True where the first element is NaN, and nobody knows before the run: []. The same operators and
// constants for every shape, so that one function serves all barriers.
ValueId waits_for(Builder& build, ValueId after) {
  const ir::DataType dtype = build.dtype(after);
  const ValueId flat = build.node("Reshape", {after, build.int64s({-1})},
                                  {dtype, {ir::num_elements(build.shape(after))}});
  const ValueId element = build.node(
      "Slice", {flat, build.int64s({0}), build.int64s({1}), build.int64s({0})}, {dtype, {1}});
  return build.unary("IsNaN", build.reshape(element, {}));
}

// x, by way of a condition that nobody knows. ONNX Runtime selects no bools.
ValueId selected(Builder& build, ValueId condition, ValueId x, const std::string& name) {
  if (build.dtype(x) != ir::DataType::kBool) return build.where(condition, x, x, name);
  const ValueId bytes = build.cast(x, ir::DataType::kUInt8);
  return build.cast(build.where(condition, bytes, bytes), ir::DataType::kBool, name);
}

// Values that a run of recomputed nodes could wait for, as the walk over the graph passes them.
class LiveFloats {
 public:
  explicit LiveFloats(const Graph& graph)
      : graph_(graph), depth_(graph.values().size(), 0), last_read_(graph.values().size(), -1) {
    for (size_t n = 0; n < graph.nodes().size(); ++n) {
      for (ValueId input : graph.nodes()[n].inputs) {
        if (input) last_read_[input.index()] = static_cast<int64_t>(n);
      }
    }
  }

  void pass(size_t n) {
    const Node& node = graph_.nodes()[n];
    int64_t depth = 0;
    for (ValueId input : node.inputs) {
      if (input) depth = std::max(depth, depth_[input.index()]);
    }
    for (ValueId output : node.outputs) {
      if (!output) continue;
      depth_[output.index()] = depth + 1;
      const ir::Type& type = graph_.type(output);
      if (is_recomputed(node) || !ir::is_floating(type.dtype) || type.num_elements() == 0) continue;
      if (last_read_[output.index()] > static_cast<int64_t>(n)) live_.emplace(depth + 1, output);
    }
    for (ValueId input : node.inputs) {
      if (input && last_read_[input.index()] == static_cast<int64_t>(n)) {
        live_.erase({depth_[input.index()], input});
      }
    }
  }

  // Gradients lie deeper than anything of the forward pass. Invalid when nothing is live.
  ValueId deepest() const { return live_.empty() ? ValueId() : live_.rbegin()->second; }

 private:
  const Graph& graph_;
  std::vector<int64_t> depth_;      // by value: nodes on the longest path to it
  std::vector<int64_t> last_read_;  // by value: the node, or -1
  std::set<std::pair<int64_t, ValueId>> live_;
};

class Guard {
 public:
  Guard(const Graph& graph, BarrierForm form, const Graph& sizes)
      : graph_(graph), form_(form), sizes_(sizes), rewriter_(graph), live_(graph) {}

  Graph run() {
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      if (!is_recomputed(node)) {
        rewriter_.copy(node);
        after_ = ValueId();
      } else {
        if (!after_) begin_run();
        copy_recomputed(n);
      }
      live_.pass(n);
    }
    return std::move(rewriter_).finish();
  }

 private:
  void begin_run() {
    after_ = live_.deepest();
    waiting_.clear();
    guarded_.clear();
    condition_ = ValueId();
  }

  void copy_recomputed(size_t n) {
    const Node& node = graph_.nodes()[n];
    std::vector<ValueId> inputs = rewriter_.mapped(node.inputs);
    const bool waits = std::ranges::any_of(
        node.inputs, [&](ValueId input) { return input && waiting_.contains(input); });
    const size_t operand = waits || !after_ ? node.inputs.size() : cheapest_operand(n);
    if (operand < node.inputs.size()) inputs[operand] = guarded(node.inputs[operand]);
    rewriter_.copy(node, std::move(inputs));
    if (!waits && operand == node.inputs.size()) return;
    for (ValueId output : node.outputs) {
      if (output) waiting_.insert(output);
    }
  }

  // Shapes, axes and the like have to stay constants, and so may scalars and what comes third or
  // later; nothing that is computed with is an integer unless all operands are.
  size_t cheapest_operand(size_t n) const {
    const Node& node = sizes_.nodes()[n];
    size_t best = node.inputs.size();
    auto cost = [&](size_t k) {
      const ir::Type& type = sizes_.type(node.inputs[k]);
      return std::pair(!ir::is_floating(type.dtype), type.num_bytes());
    };
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      const ValueId input = node.inputs[k];
      if (!input || sizes_.type(input).num_elements() == 0) continue;
      if (sizes_.is_constant(input) && !is_guardable_constant(input, k)) continue;
      if (best == node.inputs.size() || cost(k) < cost(best)) best = k;
    }
    return best;
  }

  bool is_guardable_constant(ValueId constant, size_t position) const {
    const ir::Type& type = sizes_.type(constant);
    return position < 2 && type.rank() > 0 && ir::is_floating(type.dtype);
  }

  ValueId guarded(ValueId x) {
    ValueId& result = guarded_[x];
    if (result) return result;
    Builder& build = rewriter_.build();
    const size_t first = build.graph().nodes().size();
    const std::string name = fmt::format("{}~barrier", graph_.name_of(x));
    const ValueId operand = rewriter_.mapped(x);
    if (form_ == BarrierForm::kOperator) {
      result = build.node(kBarrier, {operand, rewriter_.mapped(after_)}, graph_.type(x), {},
                          std::string(ir::kAutospDomain), name);
    } else {
      if (!condition_) condition_ = waits_for(build, rewriter_.mapped(after_));
      result = selected(build, condition_, operand, name);
    }
    for (size_t n = first; n < build.graph().nodes().size(); ++n) {
      build.graph().set_phase(NodeId(n), name_of(Phase::kRecompute));
    }
    return result;
  }

  const Graph& graph_;
  BarrierForm form_;
  const Graph& sizes_;  // of the same nodes
  ir::Rewriter rewriter_;
  LiveFloats live_;
  // Of the present run of recomputed nodes.
  ValueId after_;                       // what it waits for; invalid outside a run
  ValueId condition_;                   // of the standard form
  std::set<ValueId> waiting_;           // its results that depend on a barrier
  std::map<ValueId, ValueId> guarded_;  // operands, and their barriers
};

}  // namespace

Graph insert_recompute_barriers(const Graph& graph, BarrierForm form, const Graph* sizes) {
  const auto alike = [](const Node& a, const Node& b) {
    return a.op == b.op && a.inputs.size() == b.inputs.size();
  };
  const bool same = sizes != nullptr && std::ranges::equal(graph.nodes(), sizes->nodes(), alike);
  return Guard(graph, form, same ? *sizes : graph).run();
}

std::optional<Graph> barrier_body(const Graph& graph, const Node& node) {
  if (node.domain != ir::kAutospDomain || node.op != kBarrier) return std::nullopt;
  Graph body;
  body.opset = graph.opset;
  const ValueId x = body.add_input("x0", graph.type(node.inputs[0]));
  const ValueId after = body.add_input("x1", graph.type(node.inputs[1]));
  Builder build(body);
  body.add_output("y0", selected(build, waits_for(build, after), x, ""));
  return body;
}

}  // namespace autosp::transforms

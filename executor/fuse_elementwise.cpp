// Nodes are visited in order. A group grows while nothing outside of it reads its results: it can
// then run at the place of its last member, as whatever its members read is there by then and
// does not depend on the group. The first reader outside closes it.
#include "executor/fuse_elementwise.h"

#include <algorithm>
#include <map>

#include "executor/kernels/chain/chain.h"
#include "ir/rewriter.h"

namespace autosp::executor {

namespace {

using chain::Step;
using ir::Graph;
using ir::Node;
using ir::Shape;

// On the CPU a single operator is worth a chain when it is large enough to be shared out among
// threads. Devices share out every operator.
constexpr int64_t kAloneElements = 1 << 15;

struct Group {
  Shape shape;
  std::vector<size_t> members;  // node positions, in order
  bool open = true;
};

Shape row_shape(Shape shape) {
  shape.back() = 1;
  return shape;
}

// `from` broadcasts to `to` without adding elements to it.
bool broadcasts(const Shape& from, const Shape& to) {
  if (from.size() > to.size()) return false;
  const size_t lead = to.size() - from.size();
  for (size_t d = 0; d < from.size(); ++d) {
    if (from[d] != 1 && from[d] != to[lead + d]) return false;
  }
  return true;
}

class Fuser {
 public:
  // `row`: of chains, in `kernels`.
  Fuser(const Graph& graph, const KernelTable& kernels, const KernelRow& row)
      : graph_(graph), kernels_(kernels), row_(row), group_of_(graph.nodes().size(), -1) {}

  std::optional<Graph> run() {
    for (size_t n = 0; n < graph_.nodes().size(); ++n) visit(n);
    find_outside_readers();
    drop_unworthy();
    if (std::ranges::all_of(group_of_, [](int g) { return g < 0; })) return std::nullopt;
    return rewrite();
  }

 private:
  int producer_group(ValueId value) const {
    if (!value || graph_.value(value).kind != ir::ValueKind::kResult) return -1;
    return group_of_[graph_.value(value).producer.index()];
  }
  bool is_open(int group) const { return group >= 0 && groups_[static_cast<size_t>(group)].open; }

  void visit(size_t n) {
    const Node& node = graph_.nodes()[n];
    const std::optional<Step> step = chain::step_of(graph_, node);
    int home = -1;
    if (step && is_taken(n, *step)) home = find_home(node, *step);
    for (ValueId input : node.inputs) {
      const int group = producer_group(input);
      if (is_open(group) && group != home) groups_[static_cast<size_t>(group)].open = false;
    }
    if (home < 0) return;
    groups_[static_cast<size_t>(home)].members.push_back(n);
    group_of_[n] = home;
  }

  // Whether the kernel takes a step of these element types.
  bool is_taken(size_t n, const Step& step) const {
    const Group alone{step.shape, {n}};
    return row_.accepts == nullptr || row_.accepts(graph_, chain_node(alone).node);
  }

  // Whether the step can be one of a chain over this shape.
  bool fits(const Node& node, const Step& step, const Shape& shape) const {
    const bool row = step.shape != shape;
    if (shape.back() < 2 ||
        (row && (chain::needs_rows(step.op) || step.shape != row_shape(shape)))) {
      return false;
    }
    for (size_t k = 0; k < step.arity; ++k) {
      if (!broadcasts(graph_.shape(node.inputs[k]), step.shape)) return false;
    }
    return true;
  }

  // The group that the node joins: its operands', all made one, or a new one; -1 for none.
  int find_home(const Node& node, const Step& step) {
    int home = -1;
    for (size_t k = 0; k < step.arity; ++k) {
      const int group = producer_group(node.inputs[k]);
      if (!is_open(group) || group == home) continue;
      if (!fits(node, step, groups_[static_cast<size_t>(group)].shape)) continue;
      // A condition is read as it lies in memory.
      if (step.op == chain::Op::kWhere && k == 0) continue;
      if (home < 0) {
        home = group;
      } else if (groups_[static_cast<size_t>(group)].shape ==
                 groups_[static_cast<size_t>(home)].shape) {
        absorb(home, group);
      }
    }
    if (home >= 0) return home;
    if (!fits(node, step, step.shape)) return -1;
    groups_.push_back({step.shape, {}});
    return static_cast<int>(groups_.size()) - 1;
  }

  void absorb(int into, int from) {
    Group& a = groups_[static_cast<size_t>(into)];
    Group& b = groups_[static_cast<size_t>(from)];
    for (size_t n : b.members) group_of_[n] = into;
    a.members.insert(a.members.end(), b.members.begin(), b.members.end());
    std::ranges::sort(a.members);
    b = {b.shape, {}, false};
  }

  void find_outside_readers() {
    read_outside_.assign(graph_.values().size(), false);
    for (const ir::Output& output : graph_.outputs()) read_outside_[output.value.index()] = true;
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      for (ValueId input : graph_.nodes()[n].inputs) {
        if (input && producer_group(input) != group_of_[n]) read_outside_[input.index()] = true;
        if (input && group_of_[n] < 0) read_outside_[input.index()] = true;
      }
    }
  }

  void drop_unworthy() {
    for (Group& group : groups_) {
      const bool worthy = group.members.size() > 1 ||
                          (group.members.size() == 1 &&
                           ir::num_elements(group.shape) >= kAloneElements && row_.make == nullptr);
      if (worthy && has_kernel(group)) continue;
      for (size_t n : group.members) group_of_[n] = -1;
      group.members.clear();
    }
  }

  bool has_kernel(const Group& group) const {
    const BoundKernel kernel = kernels_.find(graph_, chain_node(group).node);
    return kernel && !kernel.on_host;
  }

  struct ChainNode {
    Node node;                     // with values of the old graph
    std::vector<ValueId> results;  // likewise
  };

  ChainNode chain_node(const Group& group) const {
    ChainNode result;
    std::map<size_t, int64_t> step_of_node;
    std::map<ValueId, int64_t> operand_of;
    for (size_t n : group.members) {
      step_of_node[n] = static_cast<int64_t>(step_of_node.size());
      const Node& node = graph_.nodes()[n];
      const size_t arity = chain::step_of(graph_, node)->arity;
      for (size_t k = 0; k < arity; ++k) {
        if (is_inside(group, node.inputs[k])) continue;
        if (operand_of.emplace(node.inputs[k], result.node.inputs.size()).second) {
          result.node.inputs.push_back(node.inputs[k]);
        }
      }
    }
    const auto operands = static_cast<int64_t>(result.node.inputs.size());
    std::vector<std::string> ops;
    std::vector<int64_t> arities;
    std::vector<int64_t> arguments;
    std::vector<int64_t> results;
    std::vector<int64_t> rows;
    std::vector<int64_t> types;
    for (size_t n : group.members) {
      const Node& node = graph_.nodes()[n];
      const size_t arity = chain::step_of(graph_, node)->arity;
      ops.push_back(node.op);
      arities.push_back(static_cast<int64_t>(arity));
      for (size_t k = 0; k < arity; ++k) {
        const ValueId input = node.inputs[k];
        arguments.push_back(is_inside(group, input)
                                ? operands + step_of_node.at(graph_.value(input).producer.index())
                                : operand_of.at(input));
      }
      if (graph_.shape(node.outputs[0]) != group.shape) rows.push_back(step_of_node.at(n));
      types.push_back(static_cast<int64_t>(graph_.type(node.outputs[0]).dtype));
      if (read_outside_.empty() || !read_outside_[node.outputs[0].index()]) continue;
      results.push_back(step_of_node.at(n));
      result.results.push_back(node.outputs[0]);
    }
    result.node.op = chain::kOp;
    result.node.domain = ir::kAutospDomain;
    result.node.outputs = result.results;
    result.node.attributes = {{"shape", std::vector<int64_t>(group.shape)},
                              {"ops", std::move(ops)},
                              {"arity", std::move(arities)},
                              {"arguments", std::move(arguments)},
                              {"rows", std::move(rows)},
                              {"types", std::move(types)},
                              {"results", std::move(results)}};
    return result;
  }

  bool is_inside(const Group& group, ValueId value) const {
    const ir::Value& v = graph_.value(value);
    return v.kind == ir::ValueKind::kResult &&
           std::ranges::binary_search(group.members, v.producer.index());
  }

  Graph rewrite() const {
    ir::Rewriter rewriter(graph_);
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      if (group_of_[n] < 0) {
        rewriter.copy(graph_.nodes()[n]);
        continue;
      }
      const Group& group = groups_[static_cast<size_t>(group_of_[n])];
      if (group.members.back() == n) emit(group, rewriter);
    }
    return std::move(rewriter).finish();
  }

  void emit(const Group& group, ir::Rewriter& rewriter) const {
    const ChainNode chain = chain_node(group);
    std::vector<ir::Type> types;
    std::vector<std::string> names;
    for (ValueId result : chain.results) {
      types.push_back(graph_.type(result));
      names.push_back(graph_.name_of(result));
    }
    const NodeId id = rewriter.to().add_node(chain.node.op, rewriter.mapped(chain.node.inputs),
                                             types, chain.node.attributes, chain.node.domain, names,
                                             graph_.nodes()[group.members.back()].name);
    for (size_t k = 0; k < chain.results.size(); ++k) {
      rewriter.map(chain.results[k], rewriter.to().node(id).outputs[k]);
    }
  }

  const Graph& graph_;
  const KernelTable& kernels_;
  const KernelRow& row_;
  std::vector<int> group_of_;  // by node; -1: none
  std::vector<Group> groups_;
  std::vector<bool> read_outside_;  // by value; empty while groups grow
};

}  // namespace

std::shared_ptr<const Graph> fuse_elementwise(const std::shared_ptr<const Graph>& graph,
                                              const KernelTable& kernels) {
  const KernelRow* row = kernels.row_of(ir::kAutospDomain, chain::kOp);
  if (row == nullptr) return graph;
  auto fused = Fuser(*graph, kernels, *row).run();
  return fused ? std::make_shared<const Graph>(*std::move(fused)) : graph;
}

}  // namespace autosp::executor

#include "executor/absorb_epilogues.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "ir/count_readers.h"
#include "ir/operator_traits.h"
#include "ir/rewriter.h"

namespace autosp::executor {

namespace {

using ir::Graph;
using ir::Node;
using ir::Rewriter;
using ir::Shape;

// A product, and what it has taken over so far.
struct Fused {
  size_t product = 0;  // node position
  ValueId result;      // what it gives now
  ValueId addend;      // neither is a view
  ValueId bias;
  bool relu = false;
};

bool is_product(const Node& node) {
  return node.is("MatMul") || node.is("Gemm") ||
         (node.domain == ir::kAutospDomain && node.op == "MatMul");
}

// `shape` broadcasts to one row of `columns` entries, repeated, of a tensor of shape `whole`.
bool is_row(Shape shape, const Shape& whole, int64_t columns) {
  const auto first = std::ranges::find_if(shape, [](int64_t extent) { return extent != 1; });
  shape.erase(shape.begin(), first);
  return ir::num_elements(shape) == columns && shape.size() <= whole.size() &&
         std::equal(shape.rbegin(), shape.rend(), whole.rbegin());
}

class EpilogueFinder {
 public:
  EpilogueFinder(const Graph& graph, const KernelTable& kernels)
      : graph_(graph),
        kernels_(kernels),
        readers_(ir::count_readers(graph)),
        made_at_(graph.values().size(), -1),
        fused_of_(graph.values().size(), -1),
        absorbed_(graph.nodes().size(), false) {}

  void find() {
    for (size_t step = 0; step < graph_.nodes().size(); ++step) {
      const Node& node = graph_.nodes()[step];
      for (ValueId id : node.outputs) {
        if (id) made_at_[id.index()] = static_cast<int>(step);
      }
      if (is_product(node)) begin(step);
      if (node.is("Add")) absorb_sum(step);
      if (node.is("Relu")) absorb_relu(step);
    }
  }

  // Products that have taken something over, in order.
  std::vector<Fused> fused() const {
    std::vector<Fused> result;
    std::ranges::copy_if(fused_, std::back_inserter(result), [](const Fused& f) {
      return f.addend.valid() || f.bias.valid() || f.relu;
    });
    return result;
  }
  // Whether another node does what this one did.
  bool absorbed(size_t step) const { return absorbed_[step]; }

 private:
  void begin(size_t step) {
    const Node& node = graph_.nodes()[step];
    Node asked = node;
    asked.domain = ir::kAutospDomain;
    asked.op = kFusedMatMul;
    asked.inputs.resize(2);
    if (graph_.shape(node.input(0)).size() < 2 || graph_.shape(node.input(1)).size() < 2) return;
    if (!kernels_.find(graph_, asked)) return;
    Fused fused{.product = step, .result = node.output(0), .addend = {}, .bias = {}};
    if (node.is("Gemm") && node.input(2) &&
        (node.attributes.get_float("beta", 1) != 1 || !add(fused, node.input(2), fused.result))) {
      return;
    }
    fused_of_[fused.result.index()] = static_cast<int>(fused_.size());
    fused_.push_back(fused);
  }

  // Of two products the later one: the other one's result is there by then.
  void absorb_sum(size_t step) {
    const Node& node = graph_.nodes()[step];
    std::array<size_t, 2> operands = {0, 1};
    if (unfinished(node.input(0)) < unfinished(node.input(1))) std::swap(operands[0], operands[1]);
    for (const size_t operand : operands) {
      const int k = unfinished(node.input(operand));
      if (k < 0) return;
      if (!add(fused_[static_cast<size_t>(k)], node.input(1 - operand), node.output(0))) continue;
      return finish(step, operand, k);
    }
  }

  void absorb_relu(size_t step) {
    const int k = unfinished(graph_.nodes()[step].input(0));
    if (k < 0) return;
    fused_[static_cast<size_t>(k)].relu = true;
    finish(step, 0, k);
  }

  // The product whose result `value` is, as a view perhaps, if nothing else reads it; or -1.
  int unfinished(ValueId value) const {
    while (readers_[value.index()] == 1) {
      const int k = fused_of_[value.index()];
      if (k >= 0) return fused_[static_cast<size_t>(k)].relu ? -1 : k;
      const Node* producer = graph_.producer(value);
      if (producer == nullptr || !ir::is_view(*producer)) return -1;
      value = producer->input(0);
    }
    return -1;
  }

  // Takes `term` over, of which and the product `sum` is the sum; false where it cannot be.
  bool add(Fused& fused, ValueId term, ValueId sum) const {
    const Shape& product = graph_.shape(graph_.nodes()[fused.product].output(0));
    const Shape& whole = graph_.shape(sum);
    const int64_t count = ir::num_elements(product);
    if (ir::num_elements(whole) != count) return false;
    const ValueId stored = stored_value(term);
    if (made_at_[stored.index()] >= static_cast<int>(fused.product)) return false;
    if (!fused.addend && graph_.type(term).num_elements() == count) {
      fused.addend = stored;
    } else if (!fused.bias && is_row(graph_.shape(term), whole, product.back())) {
      fused.bias = stored;
    } else {
      return false;
    }
    return true;
  }

  ValueId stored_value(ValueId value) const {
    const Node* producer = graph_.producer(value);
    while (producer != nullptr && ir::is_view(*producer)) {
      value = producer->input(0);
      producer = graph_.producer(value);
    }
    return value;
  }

  // Product k gives what the node at `step` gave, and the views before that operand are gone.
  void finish(size_t step, size_t operand, int k) {
    Fused& fused = fused_[static_cast<size_t>(k)];
    const Node& node = graph_.nodes()[step];
    absorbed_[step] = true;
    for (ValueId value = node.input(operand); value != fused.result;) {
      const NodeId view = graph_.value(value).producer;
      absorbed_[view.index()] = true;
      value = graph_.node(view).input(0);
    }
    fused.result = node.output(0);
    fused_of_[fused.result.index()] = k;
    made_at_[fused.result.index()] = static_cast<int>(fused.product);
  }

  const Graph& graph_;
  const KernelTable& kernels_;
  std::vector<size_t> readers_;  // per value, outputs among them
  std::vector<int> made_at_;     // per value: the node that makes it; -1: it is there
  std::vector<int> fused_of_;    // per value: the product that gives it; -1: none
  std::vector<bool> absorbed_;   // per node
  std::vector<Fused> fused_;
};

// The product with what it has taken over, in its place.
void emit(Rewriter& rewriter, const Fused& fused) {
  const Graph& graph = rewriter.from();
  const Node& product = graph.nodes()[fused.product];
  const ir::Type type = graph.type(product.output(0));
  std::vector<ValueId> inputs = {rewriter.mapped(product.input(0)),
                                 rewriter.mapped(product.input(1))};
  inputs.push_back(fused.addend
                       ? rewriter.build().reshape(rewriter.mapped(fused.addend), type.shape)
                       : ValueId());
  if (fused.bias) {
    inputs.push_back(rewriter.build().reshape(rewriter.mapped(fused.bias), {type.shape.back()}));
  }
  ir::Attributes attributes = product.attributes;
  attributes.erase("beta");
  if (fused.relu) attributes.set("relu", int64_t{1});
  const std::string& name = graph.name_of(fused.result);
  const NodeId id = rewriter.to().add_node(std::string(kFusedMatMul), std::move(inputs), {type},
                                           std::move(attributes), std::string(ir::kAutospDomain),
                                           {name}, product.name);
  rewriter.to().set_origin(id, product.origin);
  rewriter.to().set_phase(id, product.phase);
  rewriter.map(fused.result, rewriter.build().reshape(rewriter.to().node(id).outputs[0],
                                                      graph.shape(fused.result)));
}

}  // namespace

std::shared_ptr<const Graph> absorb_epilogues(const std::shared_ptr<const Graph>& graph,
                                              const KernelTable& kernels) {
  EpilogueFinder finder(*graph, kernels);
  finder.find();
  const std::vector<Fused> fused = finder.fused();
  if (fused.empty()) return graph;
  Rewriter rewriter(*graph);
  auto next = fused.begin();
  for (size_t step = 0; step < graph->nodes().size(); ++step) {
    if (next != fused.end() && next->product == step) {
      emit(rewriter, *next++);
    } else if (!finder.absorbed(step)) {
      rewriter.copy(graph->nodes()[step]);
    }
  }
  return std::make_shared<const Graph>(std::move(rewriter).finish());
}

}  // namespace autosp::executor

#include "transforms/fuse_attention/black_box.h"

#include <algorithm>

#include "reference/kernels.h"
#include "transforms/canonicalize/constants.h"

namespace autosp::transforms::fusion {

using ir::DataType;
using ir::Graph;
using ir::Node;
using ir::Tensor;

Sizes::Sizes(const CanonicalFactors& canonical, bool square_values) {
  constexpr int64_t kKeys = 7;
  const auto assign = [&](const AtomList& atoms, int64_t one, int64_t each) {
    for (const AtomId atom : atoms) sizes_[atom] = atoms.size() == 1 ? one : each;
  };
  assign(canonical.batch, 2, 2);
  assign(canonical.kv_heads, 2, 2);
  assign(canonical.groups, 3, 2);
  assign(canonical.queries, 5, 5);
  assign(canonical.keys, kKeys, kKeys);
  assign(canonical.keys_and_sink, kKeys + 1, kKeys + 1);
  assign(canonical.width, 4, 2);
  assign(canonical.value_width, 3, 2);
  if (square_values && !canonical.value_width.empty()) {
    AtomList others = canonical.value_width;
    others.pop_back();
    const int64_t rest = product(others);
    sizes_[canonical.value_width.back()] = (kKeys + rest - 1) / rest;
  }
}

Sizes::Sizes(const LocalFactors& factors, const CanonicalFactors& canonical) {
  for (const AtomId atom : concat(
           {canonical.full(), canonical.width, canonical.value_width, canonical.keys_and_sink})) {
    sizes_[atom] = factors.size(atom);
  }
}

int64_t Sizes::of(AtomId atom) const {
  const auto found = sizes_.find(atom);
  if (found == sizes_.end()) refuse("a dimension is neither batch, head, position nor width");
  return found->second;
}

int64_t Sizes::product(const AtomList& atoms) const {
  int64_t result = 1;
  for (const AtomId atom : atoms) result *= of(atom);
  return result;
}

Block arranged(const Block& block, const AtomList& order, const Sizes& sizes) {
  std::vector<int64_t> strides(order.size(), 0);
  for (size_t k = 0; k < order.size(); ++k) {
    int64_t stride = 1;
    for (size_t d = block.order.size(); d-- > 0;) {
      if (block.order[d] == order[k]) strides[k] = stride;
      stride *= sizes.of(block.order[d]);
    }
  }
  Block result{.order = order,
               .values = std::vector<double>(static_cast<size_t>(sizes.product(order)))};
  std::vector<int64_t> index(order.size(), 0);
  int64_t at = 0;
  for (double& value : result.values) {
    value = block.values[static_cast<size_t>(at)];
    for (size_t k = order.size(); k-- > 0;) {
      at += strides[k];
      if (++index[k] < sizes.of(order[k])) break;
      at -= strides[k] * index[k];
      index[k] = 0;
    }
  }
  return result;
}

namespace {

// The term whose constant has the same elements under another shape; the number of terms if none
// has. Forward and backward carry copies of one mask as [S, S] and [S, S, 1].
size_t equal_constant(const GraphFacts& facts, const LocalFactors& factors,
                      const CanonicalFactors& canonical, const std::vector<Term>& terms,
                      const TermUse& use, const AtomList& order) {
  const Graph& graph = facts.graph();
  constexpr int64_t kMostElements = int64_t{1} << 22;
  if (!graph.is_constant(use.root) || graph.type(use.root).num_elements() > kMostElements) {
    return terms.size();
  }
  const Sizes sizes(factors, canonical);
  const auto elements = [&](ValueId root, ValueId inside) {
    Block block{.order = factors.atoms(inside), .values = {}};
    for (int64_t k = 0; k < graph.type(root).num_elements(); ++k) {
      block.values.push_back(graph.constant(root).value_as_double(k));
    }
    return arranged(block, order, sizes).values;
  };
  for (size_t t = 0; t < terms.size(); ++t) {
    const Term& term = terms[t];
    if (!graph.is_constant(term.root) || term.order != order) continue;
    if (term.dtype != graph.type(use.root).dtype) continue;
    if (elements(term.root, term.uses[0]) == elements(use.root, use.inside)) return t;
  }
  return terms.size();
}

}  // namespace

std::vector<TermUse> find_term_uses(const Cutout& cutout, const LocalFactors& factors,
                                    const CanonicalFactors& canonical) {
  std::vector<TermUse> uses;
  for (const TermUse& use : cutout.terms) {
    const AtomList atoms = factors.atoms(use.inside);
    const bool has_sink = std::ranges::any_of(canonical.keys_and_sink, [&](AtomId atom) {
      return std::ranges::find(atoms, atom) != atoms.end();
    });
    if (!has_sink) {
      uses.push_back(use);
      continue;
    }
    std::vector<ValueId> open = {use.inside};
    while (!open.empty()) {
      const ValueId value = open.back();
      open.pop_back();
      const Node* node = cutout.graph.producer(value);
      if (node != nullptr) {
        for (ValueId input : node->inputs) {
          if (input) open.push_back(input);
        }
      } else if (std::ranges::find(cutout.leaves, value) != cutout.leaves.end()) {
        uses.push_back({.inside = value, .root = cutout.original[value.index()]});
      }
    }
  }
  return uses;
}

bool marks_sink(const GraphFacts& facts, const LocalFactors& factors,
                const CanonicalFactors& canonical, const TermUse& use) {
  const Graph& graph = facts.graph();
  if (canonical.keys_and_sink.empty() || !graph.is_constant(use.root)) return false;
  if (factors.atoms(use.inside) != AtomList{canonical.keys_and_sink[0]}) return false;
  const Tensor& tensor = graph.constant(use.root);
  for (int64_t k = 1; k + 1 < tensor.num_elements(); ++k) {
    if (tensor.value_as_double(k) != tensor.value_as_double(0)) return false;
  }
  return true;
}

std::vector<Term> find_terms(const GraphFacts& facts, const Cutout& cutout,
                             const LocalFactors& factors, const CanonicalFactors& canonical) {
  std::vector<Term> terms;
  std::map<std::pair<ValueId, AtomList>, size_t> known;  // by value and layout
  const AtomList full = canonical.full();
  for (const TermUse& use : find_term_uses(cutout, factors, canonical)) {
    if (marks_sink(facts, factors, canonical, use)) continue;
    const AtomList layout = factors.atoms(use.inside);
    AtomList order;
    for (const AtomId atom : full) {
      if (std::ranges::find(layout, atom) != layout.end()) order.push_back(atom);
    }
    if (order.size() != layout.size()) {
      refuse("operand '{}' has an index that scores lack", facts.graph().name_of(use.root));
    }
    const auto [entry, is_new] =
        known.try_emplace({facts.representative(use.root), layout}, terms.size());
    if (is_new) {
      entry->second = equal_constant(facts, factors, canonical, terms, use, order);
    }
    if (entry->second == terms.size()) {
      terms.push_back(
          {.root = use.root, .order = order, .dtype = facts.graph().type(use.root).dtype});
      if (is_drawn(facts, use.root)) terms.back().drop = read_drop_term(facts, cutout, use.inside);
    }
    terms[entry->second].uses.push_back(use.inside);
  }
  return terms;
}

BlackBox::BlackBox(const Cutout& cutout, const LocalFactors& factors,
                   const CanonicalFactors& canonical, const RegionRoles& roles,
                   const std::vector<Term>& terms, const GraphFacts& facts, bool square_values)
    : cutout_(&cutout),
      factors_(&factors),
      canonical_(&canonical),
      roles_(&roles),
      terms_(&terms),
      facts_(&facts),
      sizes_(canonical, square_values) {}

ir::Shape BlackBox::shape_of(ValueId inside) const {
  ir::Shape shape;
  for (const AtomList& atoms : factors_->dims(inside)) shape.push_back(sizes_.product(atoms));
  return shape;
}

namespace {

DataType widened(DataType dtype) { return is_floating(dtype) ? DataType::kFloat64 : dtype; }

}  // namespace

std::vector<Tensor> evaluate_node(const Node& node, const std::vector<Tensor>& operands,
                                  const std::vector<ir::Type>& types) {
  const reference::Kernel kernel = reference::find_kernel(node.domain, node.op);
  if (kernel == nullptr) refuse("operator {} has no kernel", node.op);
  std::vector<reference::Operand> inputs;
  for (const Tensor& operand : operands) {
    if (operand.dtype() == DataType::kUndefined) {
      inputs.emplace_back();
    } else {
      inputs.push_back({operand.dtype(), &operand.shape(), operand.bytes().data()});
    }
  }
  std::vector<Tensor> tensors;
  std::vector<reference::Result> results;
  for (const ir::Type& type : types) tensors.emplace_back(type);
  for (Tensor& tensor : tensors) {
    results.push_back({tensor.dtype(), &tensor.shape(), tensor.mutable_bytes()});
  }
  kernel(reference::Call{node, inputs, results});
  return tensors;
}

Tensor BlackBox::to_tensor(const Block& block, ValueId inside) const {
  const Block laid_out = arranged(block, factors_->atoms(inside), sizes_);
  const DataType dtype = widened(cutout_->graph.type(inside).dtype);
  Tensor tensor(ir::Type{dtype, shape_of(inside)});
  if (dtype == DataType::kFloat64) {
    std::ranges::copy(laid_out.values, tensor.mutable_values<double>().begin());
  } else if (dtype == DataType::kBool) {
    std::ranges::transform(laid_out.values, tensor.mutable_values<bool>().begin(),
                           [](double value) { return value != 0; });
  } else {
    refuse("operand '{}' is {}", cutout_->graph.name_of(inside), ir::name_of(dtype));
  }
  return tensor;
}

// All keys alike, and the sink.
Tensor BlackBox::sink_mark(ValueId use, ValueId root) const {
  const Tensor& constant = facts_->graph().constant(root);
  const double key = constant.value_as_double(0);
  const double sink = constant.value_as_double(constant.num_elements() - 1);
  Block block{.order = factors_->atoms(use), .values = {}};
  block.values.assign(static_cast<size_t>(sizes_.product(block.order)), key);
  block.values.back() = sink;
  return to_tensor(block, use);
}

// Windows begin with the first key, or hold the sink alone.
Tensor BlackBox::slice_bound(const Node& node, size_t operand) const {
  const Graph& graph = cutout_->graph;
  const ir::Shape& in = graph.shape(node.inputs[0]);
  const ir::Shape& out = graph.shape(node.outputs[0]);
  const ir::Shape small_in = shape_of(node.inputs[0]);
  const ir::Shape small_out = shape_of(node.outputs[0]);
  const auto begins = graph.constant_ints(node.input(1));
  auto axes = graph.constant_ints(node.input(3));
  const auto steps = graph.constant_ints(node.input(4));
  if (!begins || !axes || (node.input(4) && !steps))
    refuse("'{}' is cut out of scores", graph.name_of(node.outputs[0]));
  std::vector<int64_t> bounds;
  for (size_t k = 0; k < axes->size(); ++k) {
    const size_t axis = ir::normalize_axis((*axes)[k], in.size());
    const int64_t begin = (*begins)[k] < 0 ? (*begins)[k] + in[axis] : (*begins)[k];
    const bool at_end = begin == in[axis] - out[axis];
    if ((begin != 0 && !at_end) || (steps && (*steps)[k] != 1)) {
      refuse("'{}' is cut out of scores", graph.name_of(node.outputs[0]));
    }
    const int64_t small = begin == 0 ? 0 : small_in[axis] - small_out[axis];
    bounds.push_back(operand == 1 ? small : small + small_out[axis]);
  }
  return Tensor::int64s(bounds);
}

void BlackBox::check_pad(const Node& node) const {
  const auto pads = cutout_->graph.constant_ints(node.input(1));
  const ir::Shape in = shape_of(node.inputs[0]);
  const ir::Shape out = shape_of(node.outputs[0]);
  bool fits = pads && pads->size() == 2 * in.size() && !node.input(3);
  for (size_t d = 0; fits && d < in.size(); ++d) {
    fits = (*pads)[d] + in[d] + (*pads)[d + in.size()] == out[d];
  }
  if (!fits)
    refuse("'{}' pads scores by more than a sink", cutout_->graph.name_of(node.outputs[0]));
}

std::map<ResultRole, Block> BlackBox::run(const std::map<OperandRole, Block>& operands,
                                          const std::vector<Block>& terms,
                                          const std::vector<ResultRole>& wanted) const {
  const Graph& graph = cutout_->graph;
  std::vector<Tensor> values(graph.values().size());
  std::vector<bool> known(graph.values().size(), false);
  const auto set = [&](ValueId value, Tensor tensor) {
    values[value.index()] = std::move(tensor);
    known[value.index()] = true;
  };
  for (const auto& [role, block] : operands) {
    const ValueId input = input_of(*cutout_, *roles_, role);
    if (input) set(input, to_tensor(block, input));
  }
  for (size_t t = 0; t < terms.size(); ++t) {
    for (ValueId use : (*terms_)[t].uses) set(use, to_tensor(terms[t], use));
  }
  for (const TermUse& use : find_term_uses(*cutout_, *factors_, *canonical_)) {
    if (marks_sink(*facts_, *factors_, *canonical_, use)) {
      set(use.inside, sink_mark(use.inside, use.root));
    }
  }
  std::vector<bool> needed(graph.values().size(), false);
  for (const ResultRole role : wanted) needed[cutout_->results.at(role).index()] = true;
  std::vector<bool> runs(graph.nodes().size(), false);
  for (size_t n = graph.nodes().size(); n-- > 0;) {
    const Node& node = graph.nodes()[n];
    runs[n] = std::ranges::any_of(node.outputs, [&](ValueId output) {
      return output && needed[output.index()] && !known[output.index()];
    });
    if (!runs[n]) continue;
    for (ValueId input : node.inputs) {
      if (input) needed[input.index()] = true;
    }
  }
  for (const auto& [input, number] : cutout_->uniform) {
    if (!needed[input.index()]) continue;
    set(input, Tensor::filled({widened(graph.type(input).dtype), shape_of(input)}, number));
  }

  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    if (!runs[n]) continue;
    Node node = graph.nodes()[n];
    const auto& is_data = factors_->analysis().node(NodeId(n)).is_data;
    std::vector<Tensor> inputs;
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      const ValueId input = node.inputs[k];
      if (!input) {
        inputs.emplace_back();
      } else if (!is_data[k] && (node.is("Reshape") || node.is("Expand"))) {
        inputs.push_back(Tensor::int64s(shape_of(node.outputs[0])));
      } else if (node.is("Slice") && (k == 1 || k == 2)) {
        inputs.push_back(slice_bound(node, k));
      } else if (!is_data[k]) {
        inputs.push_back(graph.constant(input));
      } else {
        AUTOSP_CHECK(known[input.index()], "'{}' has no value", graph.name_of(input));
        inputs.push_back(values[input.index()]);
      }
    }
    if (node.is("Pad")) check_pad(node);
    if (node.is("Cast")) {
      const auto to = static_cast<DataType>(node.attributes.get_int("to", 1));
      node.attributes.set("to", static_cast<int64_t>(widened(to)));
    }
    std::vector<ir::Type> types;
    for (ValueId output : node.outputs) {
      types.push_back({widened(graph.type(output).dtype), shape_of(output)});
    }
    std::vector<Tensor> results = evaluate_node(node, inputs, types);
    for (size_t k = 0; k < results.size(); ++k) set(node.outputs[k], std::move(results[k]));
  }

  std::map<ResultRole, Block> results;
  for (const ResultRole role : wanted) {
    const ValueId value = cutout_->results.at(role);
    const auto numbers = values[value.index()].values<double>();
    const Block laid_out{.order = factors_->atoms(value),
                         .values = std::vector<double>(numbers.begin(), numbers.end())};
    results[role] = arranged(laid_out, canonical_->of(role), sizes_);
  }
  return results;
}

}  // namespace autosp::transforms::fusion

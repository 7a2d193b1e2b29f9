#include "transforms/open_length/join_lengths.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "ir/collective_numbers.h"
#include "ir/rewriter.h"
#include "transforms/open_length/length_arithmetic.h"
#include "transforms/open_length/same_graph.h"

namespace autosp::transforms {

using ir::Graph;
using ir::Node;
using ir::ValueKind;

namespace {

std::vector<int64_t> units_of(std::span<const GraphAtLength> graphs) {
  std::vector<int64_t> units;
  for (const GraphAtLength& at : graphs) units.push_back(at.units);
  return units;
}

class Joiner {
 public:
  Joiner(std::span<const GraphAtLength> graphs, const OpenLength& open)
      : graphs_(graphs),
        units_(units_of(graphs)),
        open_(open),
        first_(*graphs[0].graph),
        build_(out_),
        mapped_(first_.values().size()) {
    for (const GraphAtLength& at : graphs) {
      counterparts_.emplace_back(first_.values().size());
      AUTOSP_CHECK(at.graph->opset == first_.opset);
    }
  }

  OpenGraph join() {
    out_.name = first_.name;
    out_.opset = first_.opset;
    out_.metadata = first_.metadata;
    check_counts();
    for (size_t k = 0; k < first_.inputs().size(); ++k) add_input(k);
    find_source();
    for (size_t n = 0; n < first_.nodes().size(); ++n) add_node(NodeId(n));
    for (size_t k = 0; k < first_.outputs().size(); ++k) add_output(k);
    if (arithmetic_) {
      for (const auto& [value, shape] : arithmetic_->shapes()) forms_[value] = shape;
    }
    OpenGraph result{.graph = std::move(out_), .shapes = {}};
    ir::verify(result.graph);
    for (size_t v = 0; v < result.graph.values().size(); ++v) {
      const auto found = forms_.find(ValueId(v));
      result.shapes.push_back(found == forms_.end() ? constant_shape(result.graph, ValueId(v))
                                                    : found->second);
    }
    return result;
  }

 private:
  // What the graphs hold, as this one at length k says it.
  const Graph& graph(size_t k) const { return *graphs_[k].graph; }
  int64_t length(size_t k) const { return units_[k] * open_.multiple; }
  size_t count() const { return graphs_.size(); }

  static std::vector<LengthForm> constant_shape(const Graph& graph, ValueId value) {
    std::vector<LengthForm> forms;
    for (int64_t extent : graph.shape(value)) forms.push_back({.constant = extent});
    return forms;
  }

  [[noreturn]] void refuse(const std::string& where, const std::string& what) const {
    throw Error("'{}' cannot stay open: {} {}", open_.dim, where, what)
        .note(fmt::format("every number must be a multiple of a share of the sequence, plus a "
                          "constant; compared were the lengths {}",
                          lengths_text()))
        .help(fmt::format("give the length: --dim {}=N", open_.dim));
  }

  [[noreturn]] void refuse_node(const Node& node, const std::string& what) const {
    refuse(fmt::format("node '{}'", first_.describe(node)), what);
  }

  std::string lengths_text() const {
    std::vector<int64_t> lengths;
    for (int64_t units : units_) lengths.push_back(units * open_.multiple);
    return fmt::format("{}", fmt::join(lengths, ", "));
  }

  void check_counts() const {
    for (size_t k = 1; k < count(); ++k) {
      const size_t nodes = std::min(graph(k).nodes().size(), first_.nodes().size());
      for (size_t n = 0; n < nodes; ++n) check_alike(NodeId(n), k);
      if (graph(k).nodes().size() != first_.nodes().size()) {
        refuse("the graph", fmt::format("has {} nodes at {}, {} at {}", first_.nodes().size(),
                                        length(0), graph(k).nodes().size(), length(k)));
      }
    }
  }

  void check_alike(NodeId n, size_t k) const {
    const Node& here = first_.node(n);
    const Node& there = graph(k).node(n);
    const bool alike = here.op == there.op && here.domain == there.domain &&
                       here.phase == there.phase && here.inputs.size() == there.inputs.size() &&
                       here.outputs.size() == there.outputs.size();
    if (alike) return;
    refuse_node(here,
                fmt::format("at {} is '{}' at {}", length(0), graph(k).describe(there), length(k)));
  }

  void add_input(size_t k) {
    const ValueId here = first_.inputs()[k];
    for (size_t g = 0; g < count(); ++g) {
      const ValueId there = graph(g).inputs()[k];
      AUTOSP_CHECK(graph(g).name_of(there) == first_.name_of(here));
      counterparts_[g][here.index()] = there;
    }
    mapped_[here.index()] = out_.add_input(first_.name_of(here), first_.type(here));
    forms_[mapped_[here.index()]] = shape_of(here, fmt::format("input '{}'", first_.name_of(here)));
  }

  // The extents of a value that has a counterpart at every length.
  std::vector<LengthForm> shape_of(ValueId here, const std::string& where) const {
    std::vector<LengthForm> shape;
    for (size_t d = 0; d < first_.shape(here).size(); ++d) {
      std::vector<int64_t> extents;
      for (size_t g = 0; g < count(); ++g) {
        const ir::Shape& there = graph(g).shape(counterparts_[g][here.index()]);
        if (there.size() != first_.shape(here).size()) {
          refuse(where, fmt::format("has {} dimensions at {}, {} at {}", first_.shape(here).size(),
                                    length(0), there.size(), length(g)));
        }
        extents.push_back(there[d]);
      }
      const auto form = fit(units_, extents);
      if (!form) {
        refuse(where, fmt::format("has the extents {} along axis {}", fmt::join(extents, ", "), d));
      }
      shape.push_back(*form);
    }
    return shape;
  }

  // The first input whose shape tells the length.
  void find_source() {
    for (ValueId input : out_.inputs()) {
      const std::vector<LengthForm>& shape = forms_.at(input);
      for (size_t d = 0; d < shape.size(); ++d) {
        if (shape[d].linear == 0 || shape[d].quadratic != 0) continue;
        arithmetic_.emplace(out_, units_[0], input, d, shape[d]);
        return;
      }
    }
  }

  LengthArithmetic& arithmetic(const std::string& where) {
    if (!arithmetic_) refuse(where, "depends on the length, which no input's shape tells");
    return *arithmetic_;
  }

  void add_node(NodeId n) {
    const Node& node = first_.node(n);
    std::vector<ValueId> operands;
    for (size_t k = 0; k < node.inputs.size(); ++k) operands.push_back(operand(n, k));
    ir::Attributes attributes = node.attributes;
    if (differ(n)) open_sizes(n, operands, attributes);
    if (const auto member = scattered_to(n)) attributes.set("member", *member);
    std::vector<ir::Type> types;
    std::vector<std::string> names;
    for (ValueId result : node.outputs) {
      types.push_back(result ? first_.type(result) : ir::Type{});
      names.push_back(result ? first_.name_of(result) : "");
    }
    const NodeId made =
        out_.add_node(node.op, std::move(operands), std::move(types), std::move(attributes),
                      node.domain, std::move(names), node.name);
    out_.set_origin(made, node.origin);
    out_.set_phase(made, node.phase);
    for (size_t k = 0; k < node.outputs.size(); ++k) add_result(n, k, out_.node(made).outputs[k]);
  }

  void add_result(NodeId n, size_t k, ValueId made) {
    const ValueId here = first_.node(n).outputs[k];
    for (size_t g = 0; g < count(); ++g) {
      const ValueId there = graph(g).node(n).outputs[k];
      if (here.valid() != there.valid()) refuse_node(first_.node(n), "has other results elsewhere");
      if (here) counterparts_[g][here.index()] = there;
    }
    if (!here) return;
    mapped_[here.index()] = made;
    forms_[made] =
        shape_of(here, fmt::format("'{}', the result of node '{}',", first_.name_of(here),
                                   first_.describe(first_.node(n))));
  }

  ValueId operand(NodeId n, size_t k) {
    std::vector<ValueId> ids;
    for (size_t g = 0; g < count(); ++g) ids.push_back(graph(g).node(n).inputs[k]);
    return value(ids, first_.node(n), fmt::format("operand {}", k));
  }

  // The value that stands for these, one for each length.
  ValueId value(const std::vector<ValueId>& ids, const Node& reader, const std::string& what) {
    const ValueId here = ids[0];
    const auto kind = [&](size_t g) { return graph(g).value(ids[g]).kind; };
    for (size_t g = 1; g < count(); ++g) {
      if (ids[g].valid() != here.valid() || (here && kind(g) != kind(0))) {
        refuse_node(reader,
                    fmt::format("has another {} at {} than at {}", what, length(g), length(0)));
      }
    }
    if (!here) return {};
    if (kind(0) == ValueKind::kConstant) return constant(ids, reader, what);
    if (kind(0) == ValueKind::kExternal) return external(ids);
    for (size_t g = 1; g < count(); ++g) {
      if (counterparts_[g][here.index()] != ids[g]) {
        refuse_node(reader, fmt::format("reads '{}' at {}, '{}' at {}", first_.name_of(here),
                                        length(0), graph(g).name_of(ids[g]), length(g)));
      }
    }
    return mapped_[here.index()];
  }

  ValueId constant(const std::vector<ValueId>& ids, const Node& reader, const std::string& what) {
    ConstantSamples samples{.units = units_, .tensors = {}};
    for (size_t g = 0; g < count(); ++g) samples.tensors.push_back(graph(g).constant(ids[g]));
    const ir::Tensor& first = samples.tensors[0];
    const std::string& name = first_.name_of(ids[0]);
    if (std::ranges::all_of(samples.tensors,
                            [&](const ir::Tensor& tensor) { return tensor.identical(first); })) {
      ValueId& known = mapped_[ids[0].index()];
      if (!known) known = build_.constant(first, name);
      return known;
    }
    const std::string where =
        fmt::format("constant '{}' {}, {} of node '{}',", name, ir::to_string(first.type()), what,
                    first_.describe(reader));
    for (const ir::Tensor& tensor : samples.tensors) {
      if (tensor.dtype() != first.dtype() || tensor.type().rank() != first.type().rank()) {
        refuse(where, "has another type at another length");
      }
    }
    if (const auto known = grown_.find(ids); known != grown_.end()) return known->second;
    const auto made = arithmetic(where).constant(samples);
    if (!made) refuse(where, "has entries that do not follow from the length");
    return grown_[ids] = *made;
  }

  ValueId external(const std::vector<ValueId>& ids) {
    const ir::Value& here = first_.value(ids[0]);
    for (size_t g = 1; g < count(); ++g) {
      const ir::Value& there = graph(g).value(ids[g]);
      AUTOSP_CHECK(there.name == here.name && there.type == here.type, "'{}'", here.name);
    }
    ValueId& known = mapped_[ids[0].index()];
    if (!known) known = out_.add_external(here.name, here.type, here.external);
    return known;
  }

  // --- Attributes.

  bool differ(NodeId n) const {
    for (size_t g = 1; g < count(); ++g) {
      if (!same_attributes(first_.node(n).attributes, graph(g).node(n).attributes)) return true;
    }
    return false;
  }

  // The lists of a collective that depend on the length become its operand 2, behind the token.
  void open_sizes(NodeId n, std::vector<ValueId>& operands, ir::Attributes& attributes) {
    const Node& node = first_.node(n);
    std::span<const char* const> lists;
    if (node.domain == ir::kAutospDomain) lists = ir::collective_lists(node.op);
    std::vector<LengthForm> forms;
    for (const char* list : lists) append_list(n, list, forms);
    for (size_t g = 0; g < count(); ++g) {
      ir::Attributes rest = graph(g).node(n).attributes;
      for (const char* list : lists) rest.erase(list);
      if (g == 0) attributes = rest;
      if (!same_attributes(rest, attributes)) {
        refuse_node(node,
                    fmt::format("has other attributes at {} than at {}", length(g), length(0)));
      }
    }
    operands.resize(2);
    operands.push_back(arithmetic(fmt::format("node '{}'", first_.describe(node))).numbers(forms));
  }

  // Whose part of an uneven ReduceScatter its result is: that cannot be read off the sizes alone,
  // and value_info states no number where the length is open.
  std::optional<int64_t> scattered_to(NodeId n) const {
    const Node& node = first_.node(n);
    if (node.domain != ir::kAutospDomain || node.op != "ReduceScatter") return std::nullopt;
    const auto axis = static_cast<size_t>(node.attributes.get_int("axis", 0));
    std::vector<bool> possible(node.attributes.get_ints("group").size(), true);
    bool even = true;
    for (size_t g = 0; g < count(); ++g) {
      const Node& there = graph(g).node(n);
      const std::vector<int64_t> sizes = there.attributes.get_ints("sizes");
      const int64_t own = graph(g).shape(there.outputs[0])[axis];
      for (size_t m = 0; m < possible.size(); ++m) {
        possible[m] = possible[m] && sizes.at(m) == own;
        even = even && sizes[m] == sizes[0];
      }
    }
    if (even) return std::nullopt;
    const auto member = std::ranges::find(possible, true);
    if (member == possible.end()) refuse_node(node, "has another member's part elsewhere");
    return member - possible.begin();
  }

  void append_list(NodeId n, const std::string& list, std::vector<LengthForm>& forms) const {
    const size_t size = first_.node(n).attributes.get_ints(list).size();
    for (size_t k = 0; k < size; ++k) {
      std::vector<int64_t> values;
      for (size_t g = 0; g < count(); ++g) {
        const auto there = graph(g).node(n).attributes.get_ints(list);
        if (there.size() != size) refuse_node(first_.node(n), "exchanges other parts elsewhere");
        values.push_back(there[k]);
      }
      const auto form = fit(units_, values);
      if (!form) {
        refuse_node(first_.node(n),
                    fmt::format("has the numbers {} in its '{}'", fmt::join(values, ", "), list));
      }
      forms.push_back(*form);
    }
  }

  void add_output(size_t k) {
    const ir::Output& here = first_.outputs()[k];
    std::vector<ValueId> ids;
    for (size_t g = 0; g < count(); ++g) ids.push_back(graph(g).outputs()[k].value);
    const Node* producer = first_.producer(here.value);
    const Node output{.name = "output " + here.name};
    out_.add_output(here.name, value(ids, producer != nullptr ? *producer : output, "result"));
  }

  std::span<const GraphAtLength> graphs_;
  std::vector<int64_t> units_;
  const OpenLength& open_;
  const Graph& first_;
  Graph out_;
  ir::Builder build_;
  std::vector<std::vector<ValueId>> counterparts_;  // by length and value of the first graph
  std::vector<ValueId> mapped_;                     // by value of the first graph
  std::map<std::vector<ValueId>, ValueId> grown_;   // constants, by their ids at every length
  std::map<ValueId, std::vector<LengthForm>> forms_;
  std::optional<LengthArithmetic> arithmetic_;
};

}  // namespace

OpenGraph join_lengths(std::span<const GraphAtLength> graphs, const OpenLength& open) {
  AUTOSP_CHECK(graphs.size() >= 3, "{} lengths", graphs.size());
  return Joiner(graphs, open).join();
}

}  // namespace autosp::transforms

#include "shard/factors.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "ir/operator_traits.h"

namespace autosp::shard {

FactorAnalysis::FactorAnalysis(const ir::Graph& graph, const std::vector<bool>& is_parameter)
    : graph_(&graph),
      fresh_(graph.values().size()),
      dims_(graph.values().size()),
      fresh_operands_(graph.nodes().size()),
      rules_(graph.nodes().size()),
      symbols_(graph.nodes().size()),
      nodes_(graph.nodes().size()) {
  for (size_t v = 0; v < graph.values().size(); ++v) {
    const ir::Value& value = graph.values()[v];
    fresh_[v] = value.kind == ir::ValueKind::kConstant || value.kind == ir::ValueKind::kExternal ||
                is_parameter[v];
    dims_[v] = make_dims(value.type.shape);
  }
  for (size_t n = 0; n < graph.nodes().size(); ++n) relate(NodeId(n));
  resolve_all();
  for (size_t n = 0; n < graph.nodes().size(); ++n) collect(NodeId(n));
}

DimAtoms FactorAnalysis::make_dims(const ir::Shape& shape) {
  DimAtoms dims(shape.size());
  for (size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] != 1) dims[d] = {atoms_.make(shape[d])};
  }
  return dims;
}

const DimAtoms& FactorAnalysis::operand_dims(NodeId node, size_t k) const {
  const ValueId value = graph_->node(node).inputs[k];
  return fresh_[value.index()] ? fresh_operands_[node.index()][k] : dims_[value.index()];
}

DimAtoms& FactorAnalysis::operand_slot(NodeId node, size_t k) {
  const ValueId value = graph_->node(node).inputs[k];
  return fresh_[value.index()] ? fresh_operands_[node.index()][k] : dims_[value.index()];
}

// Unifies what the node's rule says are the same indices.
void FactorAnalysis::relate(NodeId id) {
  const ir::Node& node = graph_->node(id);
  auto& fresh = fresh_operands_[id.index()];
  fresh.resize(node.inputs.size());
  for (size_t k = 0; k < node.inputs.size(); ++k) {
    if (node.inputs[k] && fresh_[node.inputs[k].index()]) {
      fresh[k] = make_dims(graph_->shape(node.inputs[k]));
    }
  }
  auto& rule = rules_[id.index()];
  rule = rule_of(*graph_, node);
  NodeFactors& result = nodes_[id.index()];
  result.is_data.assign(node.inputs.size(), true);
  if (!rule) {
    result.opaque = "the operator has no rule";
    return;
  }
  result.linear = rule->linear;
  result.results_sum = rule->results_sum;
  for (size_t k = 0; k < node.inputs.size(); ++k) {
    result.is_data[k] = rule->is_view ? k == 0 : rule->operands[k].has_value();
  }
  if (rule->is_view) {
    relate_view(id);
    return;
  }
  auto& symbols = symbols_[id.index()];
  bool consistent = true;
  // Single-factor dimensions first: they give symbols their atoms; then the joined dimensions.
  auto visit = [&](bool joined) {
    auto relate_value = [&](const DimAtoms& dims, const ValueFactors& factors) {
      for (size_t d = 0; d < factors.size(); ++d) {
        if (factors[d].empty() || (factors[d].size() > 1) != joined) continue;
        AtomList wanted;
        for (const Symbol& symbol : factors[d]) {
          if (!symbols.contains(symbol)) {
            if (factors[d].size() == 1) {
              symbols[symbol] = dims[d];
            } else {
              AUTOSP_CHECK(rule->sizes.contains(symbol), "{}: size of factor '{}' is unknown",
                           graph_->describe(node), symbol);
              symbols[symbol] = {atoms_.make(rule->sizes.at(symbol))};
            }
          }
          const AtomList& atoms = symbols[symbol];
          wanted.insert(wanted.end(), atoms.begin(), atoms.end());
        }
        consistent = atoms_.unify(wanted, dims[d]) && consistent;
      }
    };
    for (size_t k = 0; k < rule->operands.size(); ++k) {
      if (rule->operands[k]) relate_value(operand_slot(id, k), *rule->operands[k]);
    }
    for (size_t k = 0; k < rule->results.size(); ++k) {
      if (node.outputs[k]) relate_value(dims_[node.outputs[k].index()], rule->results[k]);
    }
  };
  visit(false);
  visit(true);
  if (!consistent) result.opaque = "its dimensions divide in ways that do not fit together";
}

void FactorAnalysis::relate_view(NodeId id) {
  const ir::Node& node = graph_->node(id);
  AtomList from;
  AtomList to;
  for (const AtomList& atoms : operand_slot(id, 0))
    from.insert(from.end(), atoms.begin(), atoms.end());
  for (const AtomList& atoms : dims_[node.outputs[0].index()])
    to.insert(to.end(), atoms.begin(), atoms.end());
  if (!atoms_.unify(from, to)) {
    nodes_[id.index()].opaque =
        fmt::format("{} -> {} mixes dimensions", ir::to_string(graph_->shape(node.inputs[0])),
                    ir::to_string(graph_->shape(node.outputs[0])));
  }
}

void FactorAnalysis::resolve_all() {
  auto resolve = [this](DimAtoms& dims) {
    for (AtomList& list : dims) list = atoms_.resolve(list);
  };
  for (DimAtoms& dims : dims_) resolve(dims);
  for (auto& operands : fresh_operands_) {
    for (DimAtoms& dims : operands) resolve(dims);
  }
  for (auto& symbols : symbols_) {
    for (auto& [symbol, atoms] : symbols) atoms = atoms_.resolve(atoms);
  }
}

namespace {

// A symbol's q-th atom, as one factor of the node.
struct FactorKey {
  Symbol symbol;
  size_t index;
  auto operator<=>(const FactorKey&) const = default;
};

// How many elements of a dimension one index of its major atom stands for.
int64_t minor_elements(const Atoms& atoms, const AtomList& dimension) {
  int64_t count = 1;
  for (size_t a = 1; a < dimension.size(); ++a) count *= atoms.size(dimension[a]);
  return count;
}

}  // namespace

// Lists the node's factors, one per atom of each symbol, and joins those related by a window.
void FactorAnalysis::collect(NodeId id) {
  const ir::Node& node = graph_->node(id);
  NodeFactors& result = nodes_[id.index()];
  if (!result.opaque.empty()) return;
  const Rule& rule = *rules_[id.index()];
  if (rule.is_view) {
    collect_view(id);
    return;
  }
  std::map<FactorKey, Factor> table;
  std::vector<FactorKey> order;
  auto place = [&](const ValueFactors& factors, size_t k, bool is_operand) {
    for (size_t d = 0; d < factors.size(); ++d) {
      int position = 0;
      for (const Symbol& symbol : factors[d]) {
        const AtomList& atoms = symbols_[id.index()].at(symbol);
        for (size_t q = 0; q < atoms.size(); ++q) {
          const FactorKey key{symbol, q};
          auto [entry, is_new] = table.try_emplace(key);
          if (is_new) {
            order.push_back(key);
            entry->second.atom = entry->second.result_atom = atoms[q];
            entry->second.operands.resize(node.inputs.size());
            entry->second.results.resize(node.outputs.size());
            entry->second.role = rule.is_coupled(symbol) ? Role::kCoupled : Role::kReduction;
          }
          auto& places = is_operand ? entry->second.operands : entry->second.results;
          places[k] = AtomPosition{static_cast<int>(d), position++};
          if (!is_operand && entry->second.role == Role::kReduction)
            entry->second.role = Role::kParallel;
        }
      }
    }
  };
  for (size_t k = 0; k < rule.operands.size(); ++k) {
    if (rule.operands[k]) place(*rule.operands[k], k, true);
  }
  for (size_t k = 0; k < rule.results.size(); ++k) {
    if (node.outputs[k]) place(rule.results[k], k, false);
  }
  for (const Window& window : rule.windows) {
    const auto& from = symbols_[id.index()].at(window.from);
    const auto& to = symbols_[id.index()].at(window.to);
    const bool single = from.size() == 1 && to.size() == 1;
    if (single) {
      Factor& factor = table.at({window.from, 0});
      const Factor& other = table.at({window.to, 0});
      factor.results = other.results;
      factor.result_atom = other.atom;
      factor.role = Role::kParallel;
      factor.window = window.offset;
      table.erase({window.to, 0});
      atoms_.unite_classes(factor.atom, factor.result_atom);
      continue;
    }
    // A window over a dimension of several atoms is not a window over any one of them.
    for (auto& [key, factor] : table) {
      if (key.symbol == window.from || key.symbol == window.to) factor.role = Role::kCoupled;
    }
    if (from.empty() || to.empty()) continue;
    Factor block = table.at({window.from, 0});
    const Factor& other = table.at({window.to, 0});
    block.results = other.results;
    block.result_atom = other.atom;
    block.role = Role::kParallel;
    block.window = window.offset;
    block.operand_block = minor_elements(atoms_, from);
    block.result_block = minor_elements(atoms_, to);
    result.block_windows.push_back(std::move(block));
  }
  for (const FactorKey& key : order) {
    if (const auto found = table.find(key); found != table.end())
      result.factors.push_back(found->second);
  }
}

void FactorAnalysis::collect_view(NodeId id) {
  const ir::Node& node = graph_->node(id);
  struct Place {
    AtomId atom;
    AtomPosition position;
  };
  auto flatten = [](const DimAtoms& dims) {
    std::vector<Place> places;
    for (size_t d = 0; d < dims.size(); ++d) {
      for (size_t a = 0; a < dims[d].size(); ++a) {
        places.push_back({dims[d][a], {static_cast<int>(d), static_cast<int>(a)}});
      }
    }
    return places;
  };
  const auto from = flatten(operand_dims(id, 0));
  const auto to = flatten(dims_[node.outputs[0].index()]);
  AUTOSP_CHECK(from.size() == to.size(), "{}", graph_->describe(node));
  for (size_t k = 0; k < from.size(); ++k) {
    Factor factor;
    factor.atom = factor.result_atom = from[k].atom;
    factor.operands.resize(node.inputs.size());
    factor.results.resize(1);
    factor.operands[0] = from[k].position;
    factor.results[0] = to[k].position;
    nodes_[id.index()].factors.push_back(factor);
  }
}

std::vector<bool> data_only_nodes(const FactorAnalysis& analysis) {
  const ir::Graph& graph = analysis.graph();
  std::vector<bool> result(graph.nodes().size(), false);
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    // A draw is no mask of the data's: it belongs to the layer that reads it.
    if (ir::is_draw(graph.nodes()[n])) continue;
    result[n] = std::ranges::all_of(graph.nodes()[n].inputs, [&](ValueId input) {
      if (!input) return true;
      const ir::Value& value = graph.value(input);
      if (value.kind == ir::ValueKind::kResult) return bool{result[value.producer.index()]};
      return value.kind == ir::ValueKind::kConstant || !analysis.is_fresh_per_use(input);
    });
  }
  return result;
}

std::string FactorAnalysis::describe_dims(const DimAtoms& dims) const {
  std::vector<std::string> words;
  for (const AtomList& atoms : dims) {
    std::vector<std::string> parts;
    for (AtomId atom : atoms)
      parts.push_back(fmt::format("{}#{}", atoms_.size(atom), atom.index()));
    if (parts.empty()) {
      words.emplace_back("1");
    } else if (parts.size() == 1) {
      words.push_back(parts[0]);
    } else {
      words.push_back(fmt::format("({})", fmt::join(parts, " ")));
    }
  }
  return fmt::format("[{}]", fmt::join(words, ", "));
}

}  // namespace autosp::shard

#include "shard/attention.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "base/error.h"
#include "base/union_find.h"

namespace autosp::shard {

namespace {

// Attention or AttentionGrad. Operand 0 and result 0 have the query's heads in both.
bool is_fused(const ir::Node& node) {
  return node.domain == ir::kAutospDomain && node.op.starts_with("Attention");
}

constexpr int kHeadDim = 1;  // of one operator's operands

size_t key_operand(const ir::Node& node) { return node.op == "Attention" ? 1 : 2; }

bool is_contraction(const ir::Node& node) {
  return node.is("MatMul") || node.is("Gemm") || node.is("Einsum");
}

// Follows elementwise operators and views up from a softmax to a contraction of two computed
// values; null when there is none.
const ir::Node* scores_of(const ir::Graph& graph, ValueId value, int depth = 12) {
  const ir::Node* node = graph.producer(value);
  if (node == nullptr || depth == 0) return nullptr;
  if (is_contraction(*node)) {
    const bool computed =
        graph.producer(node->inputs[0]) != nullptr && graph.producer(node->inputs[1]) != nullptr;
    return computed ? node : nullptr;
  }
  static const std::vector<std::string> kFollowed = {"Add",   "Sub",     "Mul",       "Div",
                                                     "Where", "Cast",    "Reshape",   "Transpose",
                                                     "Tanh",  "Squeeze", "Unsqueeze", "Expand"};
  if (std::ranges::find(kFollowed, node->op) == kFollowed.end()) return nullptr;
  for (ValueId input : node->inputs) {
    const ir::Node* found = input ? scores_of(graph, input, depth - 1) : nullptr;
    if (found != nullptr) return found;
  }
  return nullptr;
}

// Where positions were made of several dimensions (rows and columns of patches), the largest is
// home, the major one among equals: values that keep them apart then have one home dimension.
ClassId largest_of(const FactorAnalysis& analysis, const std::vector<const Factor*>& positions) {
  const Factor* largest = *std::ranges::max_element(
      positions, {}, [&](const Factor* factor) { return analysis.atoms().size(factor->atom); });
  return analysis.class_of(largest->atom);
}

struct ScorePositions {
  std::vector<const Factor*> queries, keys;
};

// What the scores of one attention are over. Factors stand major to minor.
ScorePositions score_positions(const FactorAnalysis& analysis, NodeId id) {
  const ir::Node& node = analysis.graph().node(id);
  const size_t key = is_fused(node) ? key_operand(node) : 1;
  const auto is_position = [&](const Factor& factor, const auto& at) {
    return is_fused(node) ? at->dim == 2 : factor.results[0].has_value();
  };
  ScorePositions found;
  for (const Factor& factor : analysis.node(id).factors) {
    const auto& query_at = factor.operands[0];
    const auto& key_at = factor.operands[key];
    if (query_at && !key_at && is_position(factor, query_at)) found.queries.push_back(&factor);
    if (key_at && !query_at && is_position(factor, key_at)) found.keys.push_back(&factor);
  }
  return found;
}

// The scores that a node normalises, or the node itself where attention is one operator.
const ir::Node* scores_at(const ir::Graph& graph, const ir::Node& node) {
  if (is_fused(node)) return &node;
  return node.is("Softmax") ? scores_of(graph, node.inputs[0]) : nullptr;
}

void add_softmax_axes(const FactorAnalysis& analysis, ClassSet& home) {
  const ir::Graph& graph = analysis.graph();
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const ir::Node& node = graph.nodes()[n];
    if (scores_at(graph, node) == nullptr) continue;
    std::vector<const Factor*> keys;
    for (const Factor& factor : analysis.node(NodeId(n)).factors) {
      const auto& at = factor.operands[is_fused(node) ? key_operand(node) : 0];
      if (at && (is_fused(node) ? at->dim == 2 : factor.role == Role::kCoupled))
        keys.push_back(&factor);
    }
    if (!keys.empty()) home.insert(largest_of(analysis, keys));
  }
}

// Of every dimension of weights and embeddings: widths and vocabularies. Learned positions and
// latents are only added and repeated.
ClassSet weight_classes(const FactorAnalysis& analysis, const Roles& roles) {
  const ir::Graph& graph = analysis.graph();
  AUTOSP_CHECK(roles.is_parameter.size() == graph.values().size(), "roles of another graph");
  ClassSet found;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const ir::Node& node = graph.nodes()[n];
    if (!is_contraction(node) && !node.is("Gather") && !node.is("Conv")) continue;
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      if (!node.inputs[k] || !roles.is_parameter[node.inputs[k].index()]) continue;
      for (const AtomList& atoms : analysis.operand_dims(NodeId(n), k)) {
        for (AtomId atom : atoms) found.insert(analysis.class_of(atom));
      }
    }
  }
  return found;
}

// What a dimension of some value has beside a class of `home`: the rest of a sequence that the
// model divides into blocks.
ClassSet parts_beside(const FactorAnalysis& analysis, const ClassSet& home) {
  const auto is_home = [&](AtomId atom) { return home.contains(analysis.class_of(atom)); };
  ClassSet parts;
  for (size_t v = 0; v < analysis.graph().values().size(); ++v) {
    for (const AtomList& atoms : analysis.dims(ValueId(v))) {
      if (std::ranges::none_of(atoms, is_home)) continue;
      for (AtomId atom : atoms) parts.insert(analysis.class_of(atom));
    }
  }
  return parts;
}

// Attention among positions that no input has, such as those a convolution makes of audio frames.
// A vocabulary is none. What sums over the sequence scores something else, and what has it beside
// its positions attends inside blocks of it.
void add_inner_sequences(const FactorAnalysis& analysis, const Roles& roles, ClassSet& home) {
  const ir::Graph& graph = analysis.graph();
  const ClassSet of_weights = weight_classes(analysis, roles);
  const auto is_of_weight = [&](const Factor* factor) {
    return of_weights.contains(analysis.class_of(factor->atom));
  };
  ClassSet inner;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const ir::Node& node = graph.nodes()[n];
    const ir::Node* scores = scores_at(graph, node);
    if (scores == nullptr) continue;
    const NodeId id(static_cast<size_t>(scores - graph.nodes().data()));
    const bool over_sequence = std::ranges::any_of(
        analysis.node(id).factors,
        [&](const Factor& factor) { return home.contains(analysis.class_of(factor.atom)); });
    const ScorePositions positions = score_positions(analysis, id);
    if (over_sequence || std::ranges::any_of(positions.queries, is_of_weight) ||
        std::ranges::any_of(positions.keys, is_of_weight)) {
      continue;
    }
    for (const auto& side : {positions.queries, positions.keys}) {
      if (!side.empty()) inner.insert(largest_of(analysis, side));
    }
  }
  for (const ClassId part : parts_beside(analysis, home)) inner.erase(part);
  home.merge(inner);
}

// One side of a window over dimensions of several atoms.
struct BlockSide {
  ClassId class_id;
  int64_t elements;
  int64_t block;
};

// Whether positions of home on this side of a window are home on the other: blocks go on as single
// positions where their sequence is cut or padded, and positions as blocks where they are padded to
// a whole number of them.
bool goes_on(const BlockSide& here, const BlockSide& there) {
  if (there.block == 1) return true;
  const int64_t padding = there.elements - here.elements;
  return here.block == 1 && padding >= 0 && padding < there.block;
}

void add_windows_of_blocks(const FactorAnalysis& analysis, ClassSet& home) {
  const auto side_of = [&](AtomId atom, int64_t block) {
    return BlockSide{analysis.class_of(atom), analysis.atoms().size(atom) * block, block};
  };
  for (bool grown = true; grown;) {
    grown = false;
    for (size_t n = 0; n < analysis.graph().nodes().size(); ++n) {
      for (const Factor& window : analysis.node(NodeId(n)).block_windows) {
        const BlockSide operand = side_of(window.atom, window.operand_block);
        const BlockSide result = side_of(window.result_atom, window.result_block);
        if (home.contains(operand.class_id) && goes_on(operand, result))
          grown |= home.insert(result.class_id).second;
        if (home.contains(result.class_id) && goes_on(result, operand))
          grown |= home.insert(operand.class_id).second;
      }
    }
  }
}

int count_home(const FactorAnalysis& analysis, const DimAtoms& dims, const ClassSet& home) {
  int count = 0;
  for (const AtomList& atoms : dims) {
    count += static_cast<int>(std::ranges::count_if(
        atoms, [&](AtomId atom) { return home.contains(analysis.class_of(atom)); }));
  }
  return count;
}

// Factors of a contraction that could be split instead of the sequence, major to minor.
std::vector<const Factor*> alternatives_of(const FactorAnalysis& analysis, NodeId id,
                                           const HomeClasses& home) {
  const bool fused = is_fused(analysis.graph().node(id));
  std::vector<const Factor*> found;
  for (const Factor& factor : analysis.node(id).factors) {
    const ClassId c = analysis.class_of(factor.atom);
    const bool everywhere =
        factor.operands.size() >= 2 && factor.operands[0] && factor.results[0] &&
        (fused ? factor.operands[0]->dim == kHeadDim : factor.operands[1].has_value());
    if (everywhere && factor.role == Role::kParallel && !home.sequence.contains(c) &&
        !home.batch.contains(c)) {
      found.push_back(&factor);
    }
  }
  std::ranges::sort(found, {}, [](const Factor* factor) { return *factor->results[0]; });
  return found;
}

// K and V are repeated by an Expand of what has the sequence; filling a tensor with a scalar is no
// repetition. One operator's K and V never have the groups.
bool is_made_by_expand(const FactorAnalysis& analysis, const ClassSet& classes,
                       const HomeClasses& home) {
  const ir::Graph& graph = analysis.graph();
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const ir::Node& node = graph.nodes()[n];
    if (is_fused(node)) {
      for (const Factor& factor : analysis.node(NodeId(n)).factors) {
        const bool grouped = factor.operands[0] && factor.operands[0]->dim == kHeadDim &&
                             !factor.operands[key_operand(node)];
        if (grouped && classes.contains(analysis.class_of(factor.atom))) return true;
      }
      continue;
    }
    if (!node.is("Expand") && !node.is("Tile")) continue;
    bool repeats = false;
    bool has_sequence = false;
    for (const Factor& factor : analysis.node(NodeId(n)).factors) {
      const ClassId c = analysis.class_of(factor.atom);
      repeats = repeats || (!factor.operands[0] && classes.contains(c));
      has_sequence = has_sequence || (factor.operands[0] && home.sequence.contains(c));
    }
    if (repeats && has_sequence) return true;
  }
  return false;
}

// Finds the contractions that touch values with two home dimensions, and what they could be split
// by.
class SiteFinder {
 public:
  SiteFinder(const FactorAnalysis& analysis, const HomeClasses& home)
      : analysis_(analysis),
        graph_(analysis.graph()),
        home_(home),
        two_home_(graph_.values().size(), false) {}

  AttentionSites find() {
    find_two_home_values();
    find_contractions();
    find_alternatives();
    return std::move(sites_);
  }

 private:
  void find_two_home_values() {
    for (size_t v = 0; v < graph_.values().size(); ++v) {
      if (count_home(analysis_, analysis_.dims(ValueId(v)), home_.sequence) < 2) continue;
      two_home_[v] = true;
      sites_.two_home_values.emplace_back(v);
    }
  }

  void find_contractions() {
    sites_.touches.assign(graph_.nodes().size(), false);
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      const ir::Node& node = graph_.nodes()[n];
      sites_.touches[n] = touches(NodeId(n));
      if (sites_.touches[n] && (is_contraction(node) || is_fused(node)))
        sites_.contractions.emplace_back(n);
    }
  }

  bool is_two_home(ValueId value) const { return value && two_home_[value.index()]; }

  bool touches(NodeId id) const {
    const ir::Node& node = graph_.node(id);
    if (is_fused(node)) return true;
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      if (is_two_home(node.inputs[k])) return true;
      if (node.inputs[k] && analysis_.is_fresh_per_use(node.inputs[k]) &&
          count_home(analysis_, analysis_.operand_dims(id, k), home_.sequence) >= 2) {
        return true;
      }
    }
    return std::ranges::any_of(node.outputs, [&](ValueId v) { return is_two_home(v); });
  }

  using FactorList = std::vector<const Factor*>;

  // The alternatives are those of what is normalised, attention; without any, of all contractions.
  void find_alternatives() {
    const std::vector<bool> normalised = normalised_contractions();
    const bool any = std::ranges::find(normalised, true) != normalised.end();
    std::vector<FactorList> lists;
    FactorList without_pair;
    for (size_t k = 0; k < sites_.contractions.size(); ++k) {
      const NodeId id = sites_.contractions[k];
      const FactorList found = alternatives_of(analysis_, id, home_);
      if (found.empty()) {
        add_parallel(id, without_pair);
      } else if (any && !normalised[k]) {
        add(*found[0], sites_.unnormalised);
      } else {
        lists.push_back(found);
      }
    }
    size_t depth = lists.empty() ? 0 : lists[0].size();
    for (const FactorList& list : lists) depth = std::min(depth, list.size());
    for (size_t k = 0; k < depth; ++k) {
      Alternative alternative;
      alternative.size = std::numeric_limits<int64_t>::max();
      for (const FactorList& list : lists) {
        add(*list[k], alternative);
        alternative.size = std::min(alternative.size, analysis_.atoms().size(list[k]->atom));
      }
      alternative.made_by_expand = is_made_by_expand(analysis_, alternative.classes, home_);
      sites_.alternatives.push_back(std::move(alternative));
    }
    if (sites_.alternatives.empty()) return;
    for (const Factor* factor : without_pair) add(*factor, sites_.alternatives[0]);
  }

  void add(const Factor& factor, Alternative& alternative) const {
    alternative.classes.insert(analysis_.class_of(factor.atom));
    alternative.atoms.insert(factor.atom);
  }

  // The parallel factors of a contraction that offers no alternative of its own.
  void add_parallel(NodeId id, FactorList& found) const {
    for (const Factor& factor : analysis_.node(id).factors) {
      const ClassId c = analysis_.class_of(factor.atom);
      if (factor.role == Role::kParallel && !home_.sequence.contains(c) && !home_.batch.contains(c))
        found.push_back(&factor);
    }
  }

  // By contraction, whether its values of two home dimensions are scores of a softmax, or come of
  // them. What depends on data alone (masks) ties nothing together.
  std::vector<bool> normalised_contractions() const {
    const std::vector<bool> data_only = data_only_nodes(analysis_);
    UnionFind sets(graph_.values().size());
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      if (data_only[n]) continue;
      const std::vector<ValueId> values = two_home_of(NodeId(n), data_only);
      for (ValueId value : values) sets.unite(values[0].index(), value.index());
    }
    std::vector<bool> normalised(graph_.values().size(), false);  // by set
    for (const ir::Node& node : graph_.nodes()) {
      if (!node.is("Softmax") && !node.is("LogSoftmax") && !node.is("ReduceMax")) continue;
      normalised[sets.find(node.input(0).index())] = true;
    }
    std::vector<bool> result;
    for (const NodeId id : sites_.contractions) {
      result.push_back(is_fused(graph_.node(id)) ||
                       std::ranges::any_of(two_home_of(id, data_only), [&](ValueId value) {
                         return normalised[sets.find(value.index())];
                       }));
    }
    return result;
  }

  std::vector<ValueId> two_home_of(NodeId id, const std::vector<bool>& data_only) const {
    const ir::Node& node = graph_.node(id);
    std::vector<ValueId> values;
    for (const auto* list : {&node.inputs, &node.outputs}) {
      std::ranges::copy_if(*list, std::back_inserter(values), [&](ValueId value) {
        if (!is_two_home(value)) return false;
        const ir::Value& info = graph_.value(value);
        return info.kind == ir::ValueKind::kResult && !data_only[info.producer.index()];
      });
    }
    return values;
  }

  const FactorAnalysis& analysis_;
  const ir::Graph& graph_;
  const HomeClasses& home_;
  std::vector<bool> two_home_;  // by value
  AttentionSites sites_;
};

}  // namespace

HomeClasses find_home(const FactorAnalysis& analysis, const Roles& roles) {
  HomeClasses home;
  for (const DimTag& tag : roles.sequence) {
    const AtomList& atoms = analysis.dims(tag.value)[static_cast<size_t>(tag.dim)];
    if (!atoms.empty()) home.sequence.insert(analysis.class_of(atoms[0]));
  }
  if (roles.sequence.empty()) {
    add_softmax_axes(analysis, home.sequence);
  } else {
    // Positions in padded chunks of the sequence are no sequence of their own.
    add_windows_of_blocks(analysis, home.sequence);
    add_inner_sequences(analysis, roles, home.sequence);
  }
  add_windows_of_blocks(analysis, home.sequence);
  for (const DimTag& tag : roles.batch) {
    for (AtomId atom : analysis.dims(tag.value)[static_cast<size_t>(tag.dim)]) {
      const ClassId c = analysis.class_of(atom);
      if (!home.sequence.contains(c)) home.batch.insert(c);
    }
  }
  return home;
}

bool is_over(const FactorAnalysis& analysis, const Factor& block_window, const ClassSet& classes) {
  return classes.contains(analysis.class_of(block_window.atom)) &&
         classes.contains(analysis.class_of(block_window.result_atom));
}

AttentionSites find_attention(const FactorAnalysis& analysis, const HomeClasses& home) {
  return SiteFinder(analysis, home).find();
}

FactorChoice factors_of(const FactorAnalysis& analysis, const Alternative& alternative) {
  FactorChoice choice(analysis.graph().nodes().size());
  for (size_t n = 0; n < choice.size(); ++n) {
    const auto& factors = analysis.node(NodeId(n)).factors;
    std::vector<size_t>& chosen = choice[n];
    for (size_t k = 0; k < factors.size(); ++k) {
      if (alternative.classes.contains(analysis.class_of(factors[k].atom))) chosen.push_back(k);
    }
    const auto is_meant = [&](size_t k) { return alternative.atoms.contains(factors[k].atom); };
    if (chosen.size() > 1 && std::ranges::any_of(chosen, is_meant))
      std::erase_if(chosen, [&](size_t k) { return !is_meant(k); });
  }
  return choice;
}

}  // namespace autosp::shard

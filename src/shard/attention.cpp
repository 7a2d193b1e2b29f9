#include "shard/attention.h"

#include <algorithm>

#include "base/error.h"

namespace autosp::shard {

namespace {

// Attention or AttentionGrad. Operand 0 and result 0 have the query's heads in both.
bool is_fused(const ir::Node& node) {
  return node.domain == ir::kAutospDomain && node.op.starts_with("Attention");
}

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
    const bool everywhere = factor.operands.size() >= 2 && factor.operands[0] &&
                            (fused || factor.operands[1]) && factor.results[0];
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
        const bool grouped = factor.operands[0] && factor.operands[0]->dim == 1 &&
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
    add_inner_sequences(analysis, roles, home.sequence);
  }
  for (const DimTag& tag : roles.batch) {
    for (AtomId atom : analysis.dims(tag.value)[static_cast<size_t>(tag.dim)]) {
      const ClassId c = analysis.class_of(atom);
      if (!home.sequence.contains(c)) home.batch.insert(c);
    }
  }
  return home;
}

AttentionSites find_attention(const FactorAnalysis& analysis, const HomeClasses& home) {
  const ir::Graph& graph = analysis.graph();
  AttentionSites sites;
  std::vector<bool> two_home(graph.values().size(), false);
  for (size_t v = 0; v < graph.values().size(); ++v) {
    if (count_home(analysis, analysis.dims(ValueId(v)), home.sequence) >= 2) {
      two_home[v] = true;
      sites.two_home_values.emplace_back(v);
    }
  }
  std::vector<std::vector<const Factor*>> lists;
  ClassSet without_pair;  // parallel factors of contractions that offer no alternative of their own
  sites.touches.assign(graph.nodes().size(), false);
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const ir::Node& node = graph.nodes()[n];
    auto is_two_home = [&](ValueId value) { return value && two_home[value.index()]; };
    bool touches = is_fused(node) || std::ranges::any_of(node.inputs, is_two_home) ||
                   std::ranges::any_of(node.outputs, is_two_home);
    for (size_t k = 0; k < node.inputs.size() && !touches; ++k) {
      touches = node.inputs[k] && analysis.is_fresh_per_use(node.inputs[k]) &&
                count_home(analysis, analysis.operand_dims(NodeId(n), k), home.sequence) >= 2;
    }
    sites.touches[n] = touches;
    if (!touches || !(is_contraction(node) || is_fused(node))) continue;
    sites.contractions.emplace_back(n);
    const auto found = alternatives_of(analysis, NodeId(n), home);
    if (!found.empty()) {
      lists.push_back(found);
    } else {
      for (const Factor& factor : analysis.node(NodeId(n)).factors) {
        const ClassId c = analysis.class_of(factor.atom);
        if (factor.role == Role::kParallel && !home.sequence.contains(c) && !home.batch.contains(c))
          without_pair.insert(c);
      }
    }
  }
  size_t depth = lists.empty() ? 0 : lists[0].size();
  for (const auto& list : lists) depth = std::min(depth, list.size());
  for (size_t k = 0; k < depth; ++k) {
    Alternative alternative;
    alternative.size = std::numeric_limits<int64_t>::max();
    for (const auto& list : lists) {
      alternative.classes.insert(analysis.class_of(list[k]->atom));
      alternative.size = std::min(alternative.size, analysis.atoms().size(list[k]->atom));
    }
    alternative.made_by_expand = is_made_by_expand(analysis, alternative.classes, home);
    sites.alternatives.push_back(std::move(alternative));
  }
  if (!sites.alternatives.empty()) {
    sites.alternatives[0].classes.insert(without_pair.begin(), without_pair.end());
  }
  return sites;
}

}  // namespace autosp::shard

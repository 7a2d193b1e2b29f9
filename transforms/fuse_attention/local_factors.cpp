#include "transforms/fuse_attention/local_factors.h"

#include <algorithm>

namespace autosp::transforms::fusion {

using ir::Graph;
using ir::Node;

AtomList concat(std::initializer_list<AtomList> lists) {
  AtomList result;
  for (const AtomList& list : lists) result.insert(result.end(), list.begin(), list.end());
  return result;
}

bool same_atoms(AtomList a, AtomList b) {
  std::ranges::sort(a);
  std::ranges::sort(b);
  return a == b;
}

namespace {

bool contains(const AtomList& list, AtomId atom) {
  return std::ranges::find(list, atom) != list.end();
}

}  // namespace

LocalFactors::LocalFactors(const GraphFacts& facts, const Cutout& cutout)
    : analysis_(cutout.graph, std::vector<bool>(cutout.graph.values().size(), false)) {
  for (size_t n = 0; n < cutout.graph.nodes().size(); ++n) {
    const std::string& opaque = analysis_.node(NodeId(n)).opaque;
    if (!opaque.empty()) refuse("{}: {}", cutout.graph.describe(cutout.graph.nodes()[n]), opaque);
  }
  unite_windows(cutout.graph);
  for (size_t v = 0; v < cutout.original.size(); ++v) {
    if (cutout.original[v]) classify(facts, cutout, ValueId(v));
  }
}

void LocalFactors::unite_windows(const Graph& graph) {
  std::map<std::pair<shard::ClassId, int64_t>, AtomId> first;
  for (size_t v = 0; v < graph.values().size(); ++v) {
    dims_.push_back(analysis_.dims(ValueId(v)));
    for (AtomList& atoms : dims_.back()) {
      for (AtomId& atom : atoms) {
        atom = first.try_emplace({class_of(atom), size(atom)}, atom).first->second;
      }
    }
  }
}

AtomList LocalFactors::atoms(ValueId inside) const {
  AtomList result;
  for (const AtomList& list : dims(inside)) result.insert(result.end(), list.begin(), list.end());
  return result;
}

// A local atom is home if the part of the dimension that it covers is home in the whole graph. The
// whole graph's atoms are as fine or finer.
void LocalFactors::classify(const GraphFacts& facts, const Cutout& cutout, ValueId inside) {
  const ValueId original = cutout.original[inside.index()];
  const shard::FactorAnalysis& whole = facts.analysis();
  if (whole.is_fresh_per_use(original)) return;
  const shard::DimAtoms& outer = whole.dims(original);
  for (size_t d = 0; d < outer.size(); ++d) {
    size_t next = 0;
    for (const AtomId local : dims(inside)[d]) {
      for (int64_t covered = 1; covered < size(local) && next < outer[d].size(); ++next) {
        const shard::ClassId c = whole.class_of(outer[d][next]);
        if (facts.home().sequence.contains(c)) home_.insert(local);
        if (facts.home().batch.contains(c)) batch_.insert(local);
        covered *= whole.atoms().size(outer[d][next]);
      }
    }
  }
}

namespace {

// Finds the roles in the cut-out in which every contraction operand is on its own.
class RoleFinder {
 public:
  RoleFinder(const GraphFacts& facts, const Region& region)
      : facts_(facts),
        region_(region),
        cutout_(cut_out(facts, region, nullptr)),
        factors_(facts, cutout_) {
    for (const ir::Node& node : cutout_.graph.nodes()) {
      for (ValueId input : node.inputs) {
        if (input) read_.insert(input);
      }
    }
    find_normalised();
  }

  RegionRoles find() {
    if (region_.born.size() > 2) {
      refuse("{} contractions make scores, starting with '{}' and '{}'", region_.born.size(),
             result_name(region_.born[0]), result_name(region_.born[1]));
    }
    for (const NodeId id : region_.nodes) refuse_other_contractions(id);
    assign_born();
    for (const NodeId id : region_.ending) assign_ending(id);
    assign_row_gradient();
    assign_bias_gradient();
    return std::move(roles_);
  }

 private:
  const Node& node(NodeId id) const { return facts_.graph().node(id); }
  std::string result_name(NodeId id) const { return facts_.graph().name_of(node(id).outputs[0]); }

  // The copy of a node of the region.
  NodeId inside(NodeId id) const {
    return cutout_.graph.value(cutout_.inside.at(node(id).outputs[0])).producer;
  }
  const std::vector<shard::Factor>& factors_of(NodeId id) const {
    return factors_.analysis().node(inside(id)).factors;
  }

  void refuse_other_contractions(NodeId id) const {
    if (!is_contraction(node(id))) return;
    const bool born = std::ranges::find(region_.born, id) != region_.born.end();
    const bool ending = std::ranges::find(region_.ending, id) != region_.ending.end();
    if (!born && (!ending || facts_.is_mixed_and_normalised(node(id)))) {
      refuse("'{}' contracts scores into other scores", result_name(id));
    }
    if (node(id).input(2)) refuse("'{}' adds a bias to a contraction of scores", result_name(id));
  }

  // Indices that a softmax, or a reduction whose result comes back into the region, runs over.
  void find_normalised() {
    for (const NodeId id : region_.nodes) {
      if (is_contraction(node(id))) continue;
      const bool comes_back = read_.contains(cutout_.inside.at(node(id).outputs[0]));
      for (const shard::Factor& factor : factors_of(id)) {
        const bool meets = factor.role == shard::Role::kCoupled ||
                           (factor.role == shard::Role::kReduction && comes_back);
        if (meets && factors_.is_home(factor.atom))
          normalised_.insert(factors_.class_of(factor.atom));
      }
    }
  }

  // Whether a normalising function (an exponential) is computed from this value.
  bool is_normalised(ValueId start) const {
    return reaches(
        start, [](const Node& n) { return n.is("Softmax") || n.is("Exp") || n.is("LogSoftmax"); });
  }

  template <typename Predicate>
  bool reaches(ValueId start, Predicate predicate) const {
    std::unordered_set<ValueId> reached = {start};
    for (const Node& n : cutout_.graph.nodes()) {
      const bool touched = std::ranges::any_of(
          n.inputs, [&](ValueId input) { return input && reached.contains(input); });
      if (!touched) continue;
      if (predicate(n)) return true;
      for (ValueId output : n.outputs) {
        if (output) reached.insert(output);
      }
    }
    return false;
  }

  void assign_born() {
    std::vector<NodeId> scores;
    for (const NodeId id : region_.born) {
      if (is_normalised(cutout_.inside.at(node(id).outputs[0]))) {
        scores.push_back(id);
      } else {
        roles_.score_gradient = id;
      }
    }
    if (scores.empty()) {
      refuse("nothing normalises '{}'",
             region_.born.empty() ? result_name(region_.nodes[0]) : result_name(region_.born[0]));
    }
    if (scores.size() > 1) {
      refuse("'{}' and '{}' are both normalised", result_name(scores[0]), result_name(scores[1]));
    }
    roles_.scores = scores[0];
    assign_born(roles_.scores, OperandRole::kQuery, OperandRole::kKey);
    if (roles_.score_gradient) {
      assign_born(*roles_.score_gradient, OperandRole::kOutputGradient, OperandRole::kValue);
    }
  }

  void assign_born(NodeId id, OperandRole query_side, OperandRole key_side) {
    std::optional<size_t> key;
    for (const shard::Factor& factor : factors_of(id)) {
      if (!factor.results[0] || !normalised_.contains(factors_.class_of(factor.atom))) continue;
      for (size_t k = 0; k < 2; ++k) {
        if (factor.operands[k] && !factor.operands[1 - k]) {
          if (key && *key != k) refuse("both sides of '{}' are normalised", result_name(id));
          key = k;
        }
      }
    }
    if (!key) refuse("no side of '{}' is normalised", result_name(id));
    roles_.operands[{id, *key}] = key_side;
    roles_.operands[{id, 1 - *key}] = query_side;
  }

  void assign_ending(NodeId id) {
    const size_t other = facts_.is_core(node(id).inputs[0]) ? 1 : 0;
    if (facts_.is_core(node(id).inputs[other])) {
      refuse("'{}' contracts scores with scores", result_name(id));
    }
    bool over_keys = false;
    for (const shard::Factor& factor : factors_of(id)) {
      over_keys = over_keys || (factor.role == shard::Role::kReduction &&
                                normalised_.contains(factors_.class_of(factor.atom)));
    }
    const bool from_gradient = roles_.score_gradient && depends(id, *roles_.score_gradient);
    const ResultRole result =
        over_keys ? (from_gradient ? ResultRole::kQueryGradient : ResultRole::kOutput)
                  : (from_gradient ? ResultRole::kKeyGradient : ResultRole::kValueGradient);
    const OperandRole operand =
        over_keys ? (from_gradient ? OperandRole::kKey : OperandRole::kValue)
                  : (from_gradient ? OperandRole::kQuery : OperandRole::kOutputGradient);
    if (!roles_.results.emplace(result, id).second) {
      refuse("'{}' and '{}' would both be the {}", result_name(roles_.results[result]),
             result_name(id), name_of(result));
    }
    roles_.operands[{id, other}] = operand;
  }

  // What leaves it summed over the keys: where scores have a column for a sink, its gradient, else
  // that of what scales the scores.
  void assign_row_gradient() {
    const bool has_sink =
        std::ranges::any_of(region_.nodes, [&](NodeId id) { return node(id).is("Pad"); });
    const ResultRole role = has_sink ? ResultRole::kSinkGradient : ResultRole::kScaleGradient;
    for (const NodeId id : region_.nodes) {
      const ValueId output = node(id).outputs[0];
      const bool leaves = !is_contraction(node(id)) && !facts_.is_core(output) &&
                          !read_.contains(cutout_.inside.at(output));
      if (!leaves) continue;
      if (!roles_.results.emplace(role, id).second) {
        refuse("'{}' leaves it besides the {} '{}'", result_name(id), name_of(role),
               result_name(roles_.results[role]));
      }
    }
  }

  // The gradient of a trained bias is the scores' gradient, read by what sums it up.
  void assign_bias_gradient() {
    for (const NodeId id : region_.nodes) {
      const ValueId output = node(id).outputs[0];
      if (!facts_.is_core(output) || !roles_.score_gradient) continue;
      const bool leaves = std::ranges::any_of(facts_.readers(output), [&](NodeId reader) {
        return !std::ranges::binary_search(region_.nodes, reader);
      });
      if (!leaves || !depends(id, *roles_.score_gradient)) continue;
      if (!roles_.results.emplace(ResultRole::kBiasGradient, id).second) {
        refuse("'{}' and '{}' are both read outside it",
               result_name(roles_.results[ResultRole::kBiasGradient]), result_name(id));
      }
    }
  }

  bool depends(NodeId id, NodeId on) const {
    const Node& target = cutout_.graph.node(inside(id));
    return reaches(cutout_.inside.at(node(on).outputs[0]),
                   [&](const Node& n) { return &n == &target; });
  }

  const GraphFacts& facts_;
  const Region& region_;
  Cutout cutout_;
  LocalFactors factors_;
  std::unordered_set<ValueId> read_;
  std::unordered_set<shard::ClassId> normalised_;
  RegionRoles roles_;
};

}  // namespace

RegionRoles find_roles(const GraphFacts& facts, const Region& region) {
  RegionRoles roles = RoleFinder(facts, region).find();
  const auto has = [&](ResultRole role) { return roles.results.contains(role); };
  if (!has(ResultRole::kOutput)) refuse("no contraction sums the weights over the keys");
  if (roles.score_gradient) {
    for (const ResultRole role :
         {ResultRole::kQueryGradient, ResultRole::kKeyGradient, ResultRole::kValueGradient}) {
      if (!has(role)) refuse("the backward pass has no {}", name_of(role));
    }
  }
  if (!roles.score_gradient && roles.results.size() != 1) {
    refuse("gradients without a gradient of the weights");
  }
  return roles;
}

AtomList CanonicalFactors::heads() const { return concat({kv_heads, groups}); }

AtomList CanonicalFactors::full() const { return concat({batch, heads(), queries, keys}); }

AtomList CanonicalFactors::of(OperandRole role) const {
  switch (role) {
    case OperandRole::kQuery:
      return concat({batch, heads(), queries, width});
    case OperandRole::kKey:
      return concat({batch, kv_heads, keys, width});
    case OperandRole::kValue:
      return concat({batch, kv_heads, keys, value_width});
    case OperandRole::kOutputGradient:
      return concat({batch, heads(), queries, value_width});
  }
  return {};
}

AtomList CanonicalFactors::of(ResultRole role) const {
  switch (role) {
    case ResultRole::kOutput:
      return of(OperandRole::kOutputGradient);
    case ResultRole::kQueryGradient:
      return of(OperandRole::kQuery);
    case ResultRole::kKeyGradient:
      return of(OperandRole::kKey);
    case ResultRole::kValueGradient:
      return of(OperandRole::kValue);
    case ResultRole::kBiasGradient:
      return bias_gradient;
    case ResultRole::kSinkGradient:
      return heads();
    case ResultRole::kScaleGradient:
      return scale_gradient;
  }
  return {};
}

namespace {

// The atoms of `list` for which `keep` holds, in order.
template <typename Keep>
AtomList select(const AtomList& list, Keep keep) {
  AtomList result;
  std::ranges::copy_if(list, std::back_inserter(result), keep);
  return result;
}

std::string sizes_text(const LocalFactors& factors, const AtomList& atoms) {
  std::vector<int64_t> sizes;
  for (const AtomId atom : atoms) sizes.push_back(factors.size(atom));
  return fmt::format("[{}]", fmt::join(sizes, ", "));
}

}  // namespace

namespace {

void find_keys_and_sink(const LocalFactors& factors, const Cutout& cutout,
                        CanonicalFactors& found) {
  const AtomId keys = found.keys[0];
  for (size_t v = 0; v < cutout.graph.values().size(); ++v) {
    for (const AtomId atom : factors.atoms(ValueId(v))) {
      const bool wider = atom != keys && factors.class_of(atom) == factors.class_of(keys) &&
                         factors.size(atom) == factors.size(keys) + 1;
      if (wider && !contains(found.keys_and_sink, atom)) found.keys_and_sink.push_back(atom);
    }
  }
}

}  // namespace

ValueId input_of(const Cutout& cutout, const RegionRoles& roles, OperandRole role) {
  for (const auto& [place, r] : roles.operands) {
    if (r == role) return cutout.operands.at(place);
  }
  return {};
}

CanonicalFactors find_canonical_factors(const GraphFacts& facts, const LocalFactors& factors,
                                        const Cutout& cutout, const RegionRoles& roles) {
  const Graph& graph = cutout.graph;
  const ValueId result = cutout.inside.at(facts.graph().node(roles.scores).outputs[0]);
  const Node& scores = *graph.producer(result);
  const size_t q = roles.operands.at({roles.scores, 0}) == OperandRole::kQuery ? 0 : 1;
  const AtomList query = factors.atoms(scores.inputs[q]);
  const AtomList key = factors.atoms(scores.inputs[1 - q]);
  const AtomList both = factors.atoms(result);
  const AtomList key_root = factors.atoms(input_of(cutout, roles, OperandRole::kKey));
  const AtomList value_root = factors.atoms(input_of(cutout, roles, OperandRole::kValue));
  const auto is_home = [&](AtomId atom) { return factors.is_home(atom); };

  CanonicalFactors found;
  found.width = select(query, [&](AtomId a) { return contains(key, a) && !contains(both, a); });
  const AtomList query_only = select(both, [&](AtomId a) { return !contains(key, a); });
  const AtomList key_only = select(both, [&](AtomId a) { return !contains(query, a); });
  const AtomList shared =
      select(both, [&](AtomId a) { return contains(query, a) && contains(key, a); });
  found.queries = select(query_only, is_home);
  found.keys = select(key_only, is_home);
  if (found.queries.size() != 1 || found.keys.size() != 1 || key_only.size() != 1) {
    refuse("scores '{}' have query positions {} and key positions {}", graph.name_of(result),
           sizes_text(factors, query_only), sizes_text(factors, key_only));
  }
  for (const AtomId atom : shared) {
    const bool in_key = contains(key_root, atom);
    if (in_key != contains(value_root, atom)) {
      refuse("keys and values of '{}' are grouped differently", graph.name_of(result));
    }
    AtomList& list = !in_key ? found.groups : factors.is_batch(atom) ? found.batch : found.kv_heads;
    list.push_back(atom);
  }
  // Heads may also share the rows of one product, as [.., group * query, width].
  for (const AtomId atom : query_only) {
    if (!is_home(atom)) found.groups.push_back(atom);
  }
  find_keys_and_sink(factors, cutout, found);
  const AtomList known = concat({found.batch, found.heads(), found.queries});
  found.value_width = select(factors.atoms(cutout.results.at(ResultRole::kOutput)),
                             [&](AtomId a) { return !contains(known, a); });

  const auto kept_by = [&](ResultRole role) {
    if (!cutout.results.contains(role)) return AtomList();
    const AtomList held = factors.atoms(cutout.results.at(role));
    return select(found.full(), [&](AtomId a) { return contains(held, a); });
  };
  found.bias_gradient = kept_by(ResultRole::kBiasGradient);
  found.scale_gradient = kept_by(ResultRole::kScaleGradient);
  for (const auto& [role, value] : cutout.results) {
    if (!same_atoms(factors.atoms(value), found.of(role))) {
      refuse("the {} '{}' has factors {}, not {}", name_of(role), graph.name_of(value),
             sizes_text(factors, factors.atoms(value)), sizes_text(factors, found.of(role)));
    }
  }
  for (const auto& [place, role] : roles.operands) {
    const ValueId input = cutout.operands.at(place);
    if (!same_atoms(factors.atoms(input), found.of(role))) {
      refuse("the {} '{}' has factors {}, not {}", name_of(role), graph.name_of(input),
             sizes_text(factors, factors.atoms(input)), sizes_text(factors, found.of(role)));
    }
  }
  return found;
}

}  // namespace autosp::transforms::fusion

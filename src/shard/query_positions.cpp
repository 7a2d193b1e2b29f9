#include "shard/query_positions.h"

#include <algorithm>
#include <map>
#include <optional>
#include <span>
#include <tuple>

#include "base/union_find.h"

namespace autosp::shard {

namespace {

enum class Side : uint8_t { kUnknown, kQuery, kKey, kContradictory };

Side joined(Side a, Side b) {
  if (a == Side::kUnknown || a == b) return b;
  return b == Side::kUnknown ? a : Side::kContradictory;
}

// A mask may serve several layers, and not as the same side in each: what depends on data alone
// ties nothing together. Its operators take the side that all of their readers give them.
class QueryFinder {
 public:
  QueryFinder(const FactorAnalysis& analysis, const HomeClasses& home, const AttentionSites& sites)
      : analysis_(analysis), graph_(analysis.graph()), data_only_(data_only_nodes(analysis)) {
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      if (sites.touches[n]) collect(NodeId(n), home);
    }
    unite();
  }

  FactorChoice find() {
    sides_.assign(occurrences_.size(), Side::kUnknown);
    mark_coupled();
    mark_summed();
    mark_last();
    mark_queries();
    hand_to_data();
    FactorChoice choice(graph_.nodes().size());
    for (const Occurrence& at : occurrences_) {
      if (side(at) == Side::kQuery) choice[at.node.index()].push_back(at.factor);
    }
    return choice;
  }

 private:
  // A home factor of a node.
  struct Occurrence {
    NodeId node;
    size_t factor;
    size_t element;
  };
  // A place in a value: what stands on both sides of it is one occurrence.
  using Place = std::tuple<size_t, AtomPosition>;

  const Factor& factor(const Occurrence& at) const {
    return analysis_.node(at.node).factors[at.factor];
  }
  bool is_data_only(const Occurrence& at) const { return data_only_[at.node.index()]; }
  Side& side(const Occurrence& at) { return sides_[elements_.find(at.element)]; }

  void collect(NodeId id, const HomeClasses& home) {
    const auto& factors = analysis_.node(id).factors;
    for (size_t k = 0; k < factors.size(); ++k) {
      if (home.sequence.contains(analysis_.class_of(factors[k].atom)))
        occurrences_.push_back({id, k, elements_.add()});
    }
  }

  // Calls `visit` for each place where the occurrence stands in a value with two home dimensions.
  template <typename Visit>
  void for_each_place(const Occurrence& at, const std::vector<bool>& two_home, const Visit& visit) {
    const ir::Node& node = graph_.node(at.node);
    const auto places = [&](const auto& values, const auto& positions, bool is_operand) {
      for (size_t k = 0; k < values.size(); ++k) {
        if (values[k] && positions[k] && two_home[values[k].index()])
          visit(values[k], Place(values[k].index(), *positions[k]), is_operand);
      }
    };
    places(node.inputs, factor(at).operands, true);
    places(node.outputs, factor(at).results, false);
  }

  bool is_data_value(ValueId value) const {
    const ir::Value& info = graph_.value(value);
    return info.kind != ir::ValueKind::kResult || data_only_[info.producer.index()];
  }

  void unite() {
    std::vector<bool> two_home = two_home_values();
    std::map<Place, size_t> first;
    for (const Occurrence& at : occurrences_) {
      for_each_place(at, two_home, [&](ValueId value, const Place& place, bool) {
        if (is_data_value(value) && !is_data_only(at)) {
          uses_.push_back({place, at.element});
          return;
        }
        const auto [entry, is_new] = first.try_emplace(place, at.element);
        if (!is_new) elements_.unite(entry->second, at.element);
      });
    }
    for (Use& use : uses_) {
      if (const auto found = first.find(use.place); found != first.end())
        use.source = found->second;
    }
    std::erase_if(uses_, [](const Use& use) { return !use.source; });
  }

  std::vector<bool> two_home_values() const {
    std::vector<bool> result(graph_.values().size(), false);
    std::map<ValueId, std::set<AtomPosition>> positions;
    for (const Occurrence& at : occurrences_) {
      const ir::Node& node = graph_.node(at.node);
      for (size_t k = 0; k < node.inputs.size(); ++k) {
        // A leaf with fresh dimensions at every use is no link between operators.
        if (node.inputs[k] && factor(at).operands[k] && !analysis_.is_fresh_per_use(node.inputs[k]))
          positions[node.inputs[k]].insert(*factor(at).operands[k]);
      }
      for (size_t k = 0; k < node.outputs.size(); ++k) {
        if (node.outputs[k] && factor(at).results[k])
          positions[node.outputs[k]].insert(*factor(at).results[k]);
      }
    }
    for (const auto& [value, places] : positions) result[value.index()] = places.size() >= 2;
    return result;
  }

  void mark_coupled() {
    for (const Occurrence& at : occurrences_) {
      if (factor(at).role == Role::kCoupled && !is_data_only(at)) side(at) = Side::kKey;
    }
  }

  // Calls `visit` with the occurrences of each node of which no side is known yet.
  template <typename Visit>
  void for_each_open_node(const Visit& visit) {
    for (size_t begin = 0, end = 0; begin < occurrences_.size(); begin = end) {
      while (end < occurrences_.size() && occurrences_[end].node == occurrences_[begin].node) ++end;
      const std::span<const Occurrence> own(occurrences_.data() + begin, end - begin);
      const bool open = std::ranges::all_of(
          own, [&](const Occurrence& at) { return side(at) == Side::kUnknown; });
      if (open && own.size() >= 2 && !is_data_only(own[0])) visit(own);
    }
  }

  // Where nothing couples: the first sum over one of two factors.
  void mark_summed() {
    for_each_open_node([&](std::span<const Occurrence> own) {
      const auto summed = std::ranges::find_if(
          own, [&](const Occurrence& at) { return factor(at).role == Role::kReduction; });
      if (summed != own.end()) side(*summed) = Side::kKey;
    });
  }

  // Where nothing is summed either (the gradient of a weight that mixes positions), either side
  // will do.
  void mark_last() {
    for_each_open_node([&](std::span<const Occurrence> own) { side(own.back()) = Side::kKey; });
  }

  // What is not the key side is the queries, wherever it meets one.
  void mark_queries() {
    std::map<NodeId, bool> meets_key;
    for (const Occurrence& at : occurrences_) {
      if (side(at) == Side::kKey) meets_key[at.node] = true;
    }
    for (const Occurrence& at : occurrences_) {
      if (side(at) == Side::kUnknown && meets_key.contains(at.node)) side(at) = Side::kQuery;
    }
  }

  void hand_to_data() {
    std::map<size_t, Side> given;
    for (const Use& use : uses_) {
      Side& at = given.try_emplace(elements_.find(*use.source), Side::kUnknown).first->second;
      at = joined(at, sides_[elements_.find(use.element)]);
    }
    for (const auto& [element, given_side] : given) sides_[element] = given_side;
  }

  // A value made from data alone, read by an operator that is not.
  struct Use {
    Place place;
    size_t element;
    std::optional<size_t> source = std::nullopt;
  };

  const FactorAnalysis& analysis_;
  const ir::Graph& graph_;
  const std::vector<bool> data_only_;  // by node
  std::vector<Occurrence> occurrences_;
  UnionFind elements_;
  std::vector<Use> uses_;
  std::vector<Side> sides_;  // by representative element
};

}  // namespace

FactorChoice find_query_positions(const FactorAnalysis& analysis, const HomeClasses& home,
                                  const AttentionSites& sites) {
  return QueryFinder(analysis, home, sites).find();
}

bool any_choice(const FactorChoice& choice) {
  return std::ranges::any_of(choice, [](const auto& factors) { return !factors.empty(); });
}

}  // namespace autosp::shard

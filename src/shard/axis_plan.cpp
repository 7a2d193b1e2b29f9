#include "shard/axis_plan.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <set>

#include "base/error.h"
#include "shard/min_cut.h"
#include "shard/ring.h"

namespace autosp::shard {

namespace {

// Capacities are in 1/64 bytes, so that fractional prices stay integers.
constexpr int64_t kScale = 64;

// No real price comes near: 2^55 scaled bytes are 512 TiB. What costs more is ruled out.
constexpr int64_t kForbidden = int64_t{1} << 55;

// What depends on data and constants alone (masks, positions, counts) every rank may compute whole
// instead of gathering it; the price, a fraction of its bytes, makes that the second choice.
constexpr double kDataReplicationPrice = 0.01;

bool is_view(const ir::Node& node) {
  static const std::set<std::string> kViews = {"Reshape", "Transpose", "Unsqueeze", "Squeeze",
                                               "Expand",  "Slice",     "Concat",    "Split",
                                               "Cast",    "Identity",  "Neg",       "Pad"};
  return node.domain.empty() && kViews.contains(node.op);
}

class Planner {
 public:
  Planner(const FactorAnalysis& analysis, const AxisProblem& problem)
      : analysis_(analysis), graph_(analysis.graph()), problem_(problem) {
    const size_t count = graph_.nodes().size();
    plan_.labels.assign(count, Label::kHome);
    plan_.strategies.resize(count);
    plan_.gathered.assign(count, false);
    replication_price_.assign(count, 0);
    data_only_ = data_only_nodes(analysis);
  }

  AxisPlan plan() {
    for (Label label : {Label::kHome, Label::kAlternative}) make_strategies(label);
    settle();
    cut();
    return std::move(plan_);
  }

  AxisPlan plan_as(const std::vector<Label>& labels) {
    for (Label label : {Label::kHome, Label::kAlternative}) make_strategies(label);
    settle();
    plan_.labels = labels;
    for (size_t n = 0; n < labels.size(); ++n) {
      if (plan_.strategies[n][static_cast<size_t>(labels[n])]) continue;
      throw Error("node '{}' cannot be split as at the length that was planned for",
                  graph_.describe(graph_.nodes()[n]))
          .note("one plan holds for all lengths");
    }
    return std::move(plan_);
  }

 private:
  using FactorList = std::vector<const Factor*>;

  // A window of blocks stands for the coupled factors of its dimensions.
  FactorList home_factors(NodeId id) const {
    FactorList windows;
    const NodeFactors& node = analysis_.node(id);
    for (const Factor& window : node.block_windows) {
      if (is_over(analysis_, window, problem_.home)) windows.push_back(&window);
    }
    const auto is_of_window = [&](const Factor& factor) {
      return factor.role == Role::kCoupled &&
             std::ranges::any_of(windows, [&](const Factor* window) {
               return window->atom == factor.atom || window->result_atom == factor.atom;
             });
    };
    FactorList found = windows;
    for (const Factor& factor : node.factors) {
      if (problem_.home.contains(analysis_.class_of(factor.atom)) && !is_of_window(factor))
        found.push_back(&factor);
    }
    return found;
  }

  // Rows that are looked up by position may be a sequence of their own, as image features among
  // tokens are: whole where the node is split by the positions, as any other table is.
  FactorList home_factors_without_table(NodeId id) const {
    FactorList found = home_factors(id);
    const std::string& op = graph_.node(id).op;
    if (op != "GatherND" && op != "ScatterND") return found;
    FactorList positions;
    std::ranges::copy_if(found, std::back_inserter(positions),
                         [](const Factor* factor) { return factor->role != Role::kCoupled; });
    return positions.size() == 1 ? positions : found;
  }

  FactorList alternative_factors(NodeId id) const {
    FactorList found;
    if (problem_.alternative.empty()) return found;
    for (size_t k : problem_.alternative[id.index()])
      found.push_back(&analysis_.node(id).factors[k]);
    return found;
  }

  bool splits_home(Label label) const {
    return label == Label::kHome || problem_.alternative_is_home;
  }

  Cuts cuts_of(AtomId atom, Label label) const {
    if (splits_home(label)) {
      if (const auto found = problem_.home_cuts.find(atom); found != problem_.home_cuts.end())
        return found->second;
    }
    return even_cuts(analysis_.atoms().size(atom), problem_.ranks);
  }

  // Operand and result layouts when the node is split along one factor; nullopt where a rank would
  // need parts of blocks.
  std::optional<Strategy> split_along(NodeId id, const Factor& factor, Label label) const {
    const ir::Node& node = graph_.node(id);
    Strategy strategy;
    strategy.operands.resize(node.inputs.size());
    strategy.results.resize(node.outputs.size());
    const bool nested = splits_home(label) && problem_.nested;
    Cuts operand_cuts = cuts_of(factor.atom, label);
    Cuts result_cuts = cuts_of(factor.result_atom, label);
    const Cuts operand_elements = in_elements(operand_cuts, factor.operand_block);
    const Cuts result_elements = in_elements(result_cuts, factor.result_block);
    if (factor.window && !covers(operand_elements, result_elements, *factor.window)) {
      if (factor.operand_block == 1) {
        operand_cuts = required_cuts(result_elements, *factor.window, operand_cuts.back());
      } else if (factor.result_block == 1) {
        result_cuts = required_cuts(operand_elements, -*factor.window, result_cuts.back());
      } else {
        return std::nullopt;
      }
    }
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      if (factor.operands[k])
        strategy.operands[k] = AxisLayout::split(*factor.operands[k], operand_cuts, nested);
    }
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (factor.results[k]) {
        strategy.results[k] = AxisLayout::split(*factor.results[k], result_cuts, nested);
      } else if (factor.role == Role::kReduction || analysis_.node(id).results_sum) {
        strategy.results[k] = AxisLayout::partial();
      }
    }
    return strategy;
  }

  // On a ring keys and values stay where they are, and so do their gradients. What passes between
  // ranks is the operator's own business: it has no other way to run, so its bytes decide nothing
  // here.
  void split_ring(NodeId id, Strategy& strategy) const {
    const Factor* keys = problem_.ring.empty() ? nullptr : problem_.ring[id.index()];
    if (keys == nullptr) return;
    split_by_keys(graph_.node(id), *keys, cuts_of(keys->atom, Label::kAlternative), problem_.nested,
                  strategy.operands, strategy.results);
  }

  static Cuts in_elements(Cuts cuts, int64_t block) {
    for (int64_t& cut : cuts) cut *= block;
    return cuts;
  }

  // Whether every rank's operand shard, as cut, holds what its result shard reads. Results outside
  // of the operand (padding) read nothing; operand elements outside of every result (sliced off)
  // may be anywhere, but what is kept must be with the rank that keeps it.
  static bool covers(const Cuts& operand, const Cuts& result, int64_t offset) {
    const int64_t extent = operand.back();
    for (size_t k = 0; k + 1 < result.size(); ++k) {
      const int64_t begin = std::clamp<int64_t>(result[k] + offset, 0, extent);
      const int64_t end = std::clamp<int64_t>(result[k + 1] + offset, 0, extent);
      if (begin < end && (operand[k] > begin || end > operand[k + 1])) return false;
    }
    return true;
  }

  static Cuts required_cuts(const Cuts& result, int64_t offset, int64_t extent) {
    Cuts cuts = result;
    for (int64_t& cut : cuts) cut = std::clamp<int64_t>(cut + offset, 0, extent);
    cuts.front() = 0;
    cuts.back() = extent;
    return cuts;
  }

  // A partial operand passes through when the node is linear in a set of operands that includes it.
  std::optional<Strategy> ride_partial(NodeId id, const std::vector<AxisLayout>& incoming) const {
    std::vector<size_t> partial;
    for (size_t k = 0; k < incoming.size(); ++k) {
      if (incoming[k].is_partial()) partial.push_back(k);
    }
    if (partial.empty()) return std::nullopt;
    for (const auto& set : analysis_.node(id).linear) {
      if (!std::ranges::includes(set, partial)) continue;
      Strategy strategy = replicated(id);
      for (size_t k : set) strategy.operands[k] = AxisLayout::partial();
      for (AxisLayout& result : strategy.results) result = AxisLayout::partial();
      return strategy;
    }
    return std::nullopt;
  }

  Strategy replicated(NodeId id) const {
    const ir::Node& node = graph_.node(id);
    return {std::vector<AxisLayout>(node.inputs.size()),
            std::vector<AxisLayout>(node.outputs.size())};
  }

  // Strategies under one label, in graph order: what a node without the label's factor does depends
  // on what its operands would be if everything had this label.
  void make_strategies(Label label) {
    std::vector<AxisLayout> layouts(graph_.values().size());
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      const NodeId id(n);
      auto& strategy = plan_.strategies[n][static_cast<size_t>(label)];
      strategy = make_strategy(id, label, layouts);
      const ir::Node& node = graph_.nodes()[n];
      for (size_t k = 0; k < node.outputs.size(); ++k) {
        if (node.outputs[k] && strategy) layouts[node.outputs[k].index()] = strategy->results[k];
      }
    }
  }

  bool can_split(const Factor& factor, Label label) const {
    if (factor.role == Role::kCoupled) return false;
    if (splits_home(label)) return true;
    // No rank may be left without a share of an alternative.
    return std::min(analysis_.atoms().size(factor.atom),
                    analysis_.atoms().size(factor.result_atom)) >= problem_.ranks;
  }

  std::optional<Strategy> make_strategy(NodeId id, Label label,
                                        const std::vector<AxisLayout>& layouts) {
    const ir::Node& node = graph_.node(id);
    if (!analysis_.node(id).opaque.empty()) return std::nullopt;
    const FactorList home = home_factors(id);
    const FactorList own =
        label == Label::kHome ? home_factors_without_table(id) : alternative_factors(id);
    if (own.size() == 1 && can_split(*own[0], label)) {
      std::optional<Strategy> strategy = split_along(id, *own[0], label);
      if (strategy && label == Label::kAlternative) split_ring(id, *strategy);
      return strategy;
    }
    if (!own.empty()) return std::nullopt;
    std::vector<AxisLayout> incoming(node.inputs.size());
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      if (node.inputs[k]) incoming[k] = layouts[node.inputs[k].index()];
    }
    if (auto riding = ride_partial(id, incoming)) return riding;
    if (label == Label::kHome || home.empty()) return replicated(id);
    // A sum over the split dimension is worth its all-reduce: what leaves it is small.
    const bool sums = std::ranges::any_of(
        home, [](const Factor* factor) { return factor->role == Role::kReduction; });
    if (problem_.nested && data_only_[id.index()] && !sums)
      return replicated_at_price(id, kDataReplicationPrice);
    if (problem_.view_replication_price >= 0 && home.size() == 1 && is_view(node)) {
      return replicated_at_price(id, problem_.view_replication_price);
    }
    return std::nullopt;
  }

  // `price` is a fraction of the bytes that the node makes.
  Strategy replicated_at_price(NodeId id, double price) {
    double bytes = 0;
    for (ValueId output : graph_.node(id).outputs) {
      if (output) bytes += static_cast<double>(graph_.type(output).num_bytes());
    }
    const auto ranks = static_cast<double>(problem_.ranks);
    replication_price_[id.index()] =
        static_cast<int64_t>(kScale * price * bytes * (ranks - 1) / ranks) + 1;
    return replicated(id);
  }

  // What cannot be split either way runs whole; what may not take the alternative does not.
  void settle() {
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      auto& [home, alternative] = plan_.strategies[n];
      // A node whose only way is to pass partial sums on would bind its producers to make them.
      const bool rides =
          alternative &&
          std::ranges::any_of(alternative->operands, [](const auto& o) { return o.is_partial(); });
      if (!home && (!alternative || rides)) {
        alternative = replicated(NodeId(n));
        plan_.gathered[n] = true;
      }
      if (home && alternative && !problem_.alternative_forbidden.empty() &&
          problem_.alternative_forbidden[n]) {
        alternative.reset();
      }
    }
  }

  int64_t price(const AxisLayout& from, const AxisLayout& to, int64_t bytes) const {
    const int64_t moved = reshard_bytes(from, to, bytes, problem_.ranks);
    if (moved == 0) return 0;
    return moved >= kForbidden / kScale ? kForbidden : (moved + problem_.collective_price) * kScale;
  }

  // The readers of one value that need one layout of it, on one side of the cut.
  using Readers = std::map<AxisLayout, std::set<int>>;

  void cut() {
    MinCut problem;
    std::vector<int> vertex(graph_.nodes().size());
    for (size_t n = 0; n < vertex.size(); ++n) {
      vertex[n] = problem.add_vertex();
      const auto& [home, alternative] = plan_.strategies[n];
      if (!home) problem.add_edge(vertex[n], problem.sink(), MinCut::kInfinite);
      if (!alternative) {
        problem.add_edge(problem.source(), vertex[n], MinCut::kInfinite);
      } else if (home) {
        problem.add_edge(problem.source(), vertex[n], replication_price_[n]);
      }
    }
    std::vector<std::array<Readers, 2>> readers(graph_.values().size());
    for (size_t n = 0; n < vertex.size(); ++n) {
      const ir::Node& node = graph_.nodes()[n];
      for (size_t k = 0; k < node.inputs.size(); ++k) {
        if (!node.inputs[k] || !analysis_.node(NodeId(n)).is_data[k]) continue;
        for (size_t label : {0, 1}) {
          const auto& strategy = plan_.strategies[n][label];
          if (strategy)
            readers[node.inputs[k].index()][label][strategy->operands[k]].insert(vertex[n]);
        }
      }
    }
    // Outputs leave the graph whole; the caller sits on the home side.
    for (const ir::Output& output : graph_.outputs()) {
      readers[output.value.index()][0][AxisLayout::replicated()].insert(problem.source());
    }
    for (size_t n = 0; n < vertex.size(); ++n) {
      const ir::Node& node = graph_.nodes()[n];
      for (size_t k = 0; k < node.outputs.size(); ++k) {
        if (node.outputs[k])
          add_costs(problem, vertex[n], NodeId(n), k, readers[node.outputs[k].index()]);
      }
    }
    const MinCut::Result result = problem.solve();
    plan_.cut_bytes = result.value / kScale;
    for (size_t n = 0; n < vertex.size(); ++n) {
      const bool sink = result.on_sink_side[static_cast<size_t>(vertex[n])];
      plan_.labels[n] = sink ? Label::kAlternative : Label::kHome;
      AUTOSP_CHECK(plan_.strategies[n][sink ? 1 : 0].has_value(), "{}",
                   graph_.describe(graph_.nodes()[n]));
      if (sink && plan_.strategies[n][0]) plan_.penalty_bytes += replication_price_[n] / kScale;
    }
  }

  // One auxiliary vertex per side and needed layout stands for "some reader on this side needs this
  // layout", so that a layout is paid for once however many need it.
  void add_costs(MinCut& problem, int producer, NodeId id, size_t result,
                 const std::array<Readers, 2>& readers) {
    const auto& [home, alternative] = plan_.strategies[id.index()];
    const int64_t bytes = graph_.type(graph_.node(id).outputs[result]).num_bytes();
    for (size_t side : {0, 1}) {
      for (const auto& [needed, vertices] : readers[side]) {
        const int64_t from_home = home ? price(home->results[result], needed, bytes) : -1;
        const int64_t from_alternative =
            alternative ? price(alternative->results[result], needed, bytes) : -1;
        if (from_home <= 0 && from_alternative <= 0) continue;
        const int need = problem.add_vertex();
        for (int reader : vertices) {
          if (side == 1) {
            problem.add_edge(need, reader, MinCut::kInfinite);
          } else {
            problem.add_edge(reader, need, MinCut::kInfinite);
          }
        }
        auto pay_always = [&](int64_t cost) {
          if (side == 1) {
            problem.add_edge(problem.source(), need, cost);
          } else {
            problem.add_edge(need, problem.sink(), cost);
          }
        };
        if (from_home < 0) {
          pay_always(from_alternative);
          continue;
        }
        if (from_alternative < 0) {
          pay_always(from_home);
          continue;
        }
        pay_always(std::min(from_home, from_alternative));
        const int64_t difference = from_home - from_alternative;
        if (side == 1 && difference > 0) {
          problem.add_edge(producer, need, difference);
        } else if (side == 0 && difference < 0) {
          problem.add_edge(need, producer, -difference);
        } else if (difference != 0) {
          // Not submodular: bound it from above by charging the producer whether or not it is read.
          plan_.overestimate_bytes += std::abs(difference) / kScale;
          if (side == 1) {
            problem.add_edge(problem.source(), producer, -difference);
          } else {
            problem.add_edge(producer, problem.sink(), difference);
          }
        }
      }
    }
  }

  const FactorAnalysis& analysis_;
  const ir::Graph& graph_;
  const AxisProblem& problem_;
  AxisPlan plan_;
  std::vector<int64_t> replication_price_;  // by node, scaled
  std::vector<bool> data_only_;  // by node: computed from data inputs and constants alone
};

}  // namespace

AxisPlan plan_axis(const FactorAnalysis& analysis, const AxisProblem& problem) {
  return Planner(analysis, problem).plan();
}

AxisPlan plan_axis_as(const FactorAnalysis& analysis, const AxisProblem& problem,
                      const std::vector<Label>& labels) {
  return Planner(analysis, problem).plan_as(labels);
}

Traffic planned_traffic(const FactorAnalysis& analysis, const AxisProblem& problem,
                        const AxisPlan& plan) {
  const ir::Graph& graph = analysis.graph();
  std::vector<std::array<std::set<AxisLayout>, 2>> needed(graph.values().size());
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const ir::Node& node = graph.nodes()[n];
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      if (!node.inputs[k] || !analysis.node(NodeId(n)).is_data[k]) continue;
      needed[node.inputs[k].index()][static_cast<size_t>(plan.labels[n])].insert(
          plan.chosen(NodeId(n)).operands[k]);
    }
  }
  for (const ir::Output& output : graph.outputs())
    needed[output.value.index()][0].insert(AxisLayout::replicated());
  Traffic traffic;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const ir::Node& node = graph.nodes()[n];
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (!node.outputs[k]) continue;
      const int64_t bytes = graph.type(node.outputs[k]).num_bytes();
      for (const auto& side : needed[node.outputs[k].index()]) {
        for (const AxisLayout& layout : side) {
          const int64_t moved =
              reshard_bytes(plan.chosen(NodeId(n)).results[k], layout, bytes, problem.ranks);
          traffic.bytes += moved;
          traffic.collectives += moved > 0 ? 1 : 0;
        }
      }
    }
  }
  return traffic;
}

}  // namespace autosp::shard

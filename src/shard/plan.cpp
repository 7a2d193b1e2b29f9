#include "shard/plan.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace autosp::shard {

namespace {

// A collective is worth starting only when it saves at least this many bytes; it also settles ties
// in favour of fewer exchanges.
constexpr int64_t kCollectivePrice = 64;

// On the axes whose K and V are gathered: see AxisProblem::view_replication_price.
constexpr double kViewPrice = 0.01;

class PlanMaker {
 public:
  PlanMaker(const ir::Graph& graph, Roles roles, const PlanOptions& options,
            const Plan* like = nullptr)
      : graph_(graph), options_(options), like_(like) {
    plan_.roles = std::move(roles);
    plan_.ring_asked = options.ring;
    plan_.zigzag_asked = options.zigzag;
    plan_.analysis = std::make_shared<FactorAnalysis>(graph, plan_.roles.is_parameter);
    plan_.home = find_home(*plan_.analysis, plan_.roles);
    plan_.attention = find_attention(*plan_.analysis, plan_.home);
    plan_.query_positions = find_query_positions(*plan_.analysis, plan_.home, plan_.attention);
  }

  Plan make() {
    measure();
    choose_mesh();
    check_sizes();
    const size_t count = plan_.mesh.num_axes();
    plan_.problems.resize(count);
    plan_.axes.resize(count);
    plan_.on_ring.assign(graph_.nodes().size(), false);
    // Inner axes first: an outer one may take its alternative only where all inner ones do, so that
    // a rank's part of the sequence stays one range.
    for (size_t k = count; k-- > 0;) plan_axis_number(k);
    report_gathered();
    return std::move(plan_);
  }

 private:
  void measure() {
    for (AtomId atom : sequence_atoms()) {
      const int64_t extent = plan_.analysis->atoms().size(atom);
      int64_t& most = plan_.most_sequence_ranks;
      plan_.sequence_extent = std::max(plan_.sequence_extent, extent);
      most = most == 0 ? extent : std::min(most, extent);
    }
    const auto bound_by = [&](AtomId atom, int64_t block) {
      if (block == 1) return;
      const int64_t blocks = plan_.analysis->atoms().size(atom);
      plan_.most_sequence_ranks = std::min(plan_.most_sequence_ranks, blocks);
    };
    for (size_t n = 0; n < graph_.nodes().size(); ++n) {
      for (const Factor& window : plan_.analysis->node(NodeId(n)).block_windows) {
        if (!is_over(*plan_.analysis, window, plan_.home.sequence)) continue;
        bound_by(window.atom, window.operand_block);
        bound_by(window.result_atom, window.result_block);
      }
    }
    // The first that K and V have before they are repeated are the KV heads; the first other one
    // are the query-head groups.
    for (const Alternative& alternative : plan_.attention.alternatives) {
      if (!alternative.made_by_expand && kv_heads_ == nullptr) {
        kv_heads_ = &alternative;
      } else if (head_groups_ == nullptr) {
        head_groups_ = &alternative;
      }
    }
    if (plan_.attention.contractions.empty()) return;
    plan_.kv_heads = kv_heads_ != nullptr ? kv_heads_->size : 1;
    plan_.head_groups = head_groups_ != nullptr ? head_groups_->size : 1;
  }

  // The alternative an axis takes inside attention; empty when the model has none for it.
  FactorChoice alternative_of(const std::string& axis) const {
    if (axis == "r") return plan_.query_positions;
    const Alternative* found = axis == "u" ? kv_heads_ : axis == "g" ? head_groups_ : nullptr;
    if (found == nullptr) return {};
    Alternative heads = *found;
    if (axis == "u" || plan_.axis_named("u") == plan_.mesh.num_axes()) {
      const Alternative& others = plan_.attention.unnormalised;
      heads.classes.insert(others.classes.begin(), others.classes.end());
      heads.atoms.insert(others.atoms.begin(), others.atoms.end());
    }
    return factors_of(*plan_.analysis, heads);
  }

  std::vector<AtomId> sequence_atoms() const {
    std::vector<AtomId> atoms;
    for (const DimTag& tag : plan_.roles.sequence) {
      const AtomList& list = plan_.analysis->dims(tag.value)[static_cast<size_t>(tag.dim)];
      if (!list.empty()) atoms.push_back(list[0]);
    }
    if (!atoms.empty()) return atoms;
    for (size_t v = 0; v < graph_.values().size(); ++v) {
      for (const AtomList& list : plan_.analysis->dims(ValueId(v))) {
        for (AtomId atom : list) {
          if (plan_.home.sequence.contains(plan_.analysis->class_of(atom))) atoms.push_back(atom);
        }
      }
      if (!atoms.empty()) break;
    }
    return atoms;
  }

  std::vector<AtomId> batch_atoms() const {
    std::vector<AtomId> atoms;
    for (const DimTag& tag : plan_.roles.batch) {
      for (AtomId atom : plan_.analysis->dims(tag.value)[static_cast<size_t>(tag.dim)]) {
        if (plan_.home.batch.contains(plan_.analysis->class_of(atom))) atoms.push_back(atom);
      }
    }
    return atoms;
  }

  void choose_mesh() {
    if (like_ != nullptr) {
      plan_.mesh = like_->mesh;
      return;
    }
    const AttentionSizes sizes = plan_.attention_sizes();
    SpDivision division{.u = options_.sp};  // where nothing divides, attention is gathered
    if (!options_.sp_mesh.empty()) {
      division = requested_division(options_.sp_mesh, options_.sp, sizes);
    } else {
      division = divide_sp(options_.sp, sizes).value_or(division);
    }
    std::vector<MeshAxis> axes;
    for (const auto& [name, size] : {MeshAxis{"dp", options_.dp}, MeshAxis{"r", division.r},
                                     MeshAxis{"g", division.g}, MeshAxis{"u", division.u}}) {
      if (size > 1) axes.push_back({name, size});
    }
    if (axes.empty()) axes.push_back({"u", 1});
    plan_.mesh = Mesh(std::move(axes));
  }

  void check_sizes() const {
    if (options_.sp < 1 || options_.dp < 1)
      throw Error("--sp {} --dp {}: both must be at least 1", options_.sp, options_.dp);
    if (options_.sp > 1 && plan_.home.sequence.empty()) {
      throw Error("no sequence dimension was found")
          .note(
              "no input has a name or symbolic dimension that exporters give to sequences, and no "
              "softmax over a contraction was found")
          .help("name one with --seq INPUT:AXIS");
    }
    for (const DimTag& tag : plan_.roles.sequence) {
      const int64_t extent = graph_.shape(tag.value)[static_cast<size_t>(tag.dim)];
      if (options_.sp > extent) {
        throw Error("--sp {} is more ranks than '{}' has tokens: its axis {} is {}", options_.sp,
                    graph_.name_of(tag.value), tag.dim, extent)
            .help(
                "use fewer ranks, or a longer sequence (--dim NAME=VALUE binds a symbolic "
                "dimension); if that axis is no sequence, name those that are with --seq");
      }
    }
    // What the model divides further (blocks of the sequence) is split by whole blocks.
    for (AtomId atom : sequence_atoms()) {
      const int64_t extent = plan_.analysis->atoms().size(atom);
      if (options_.sp > extent) {
        throw Error(
            "--sp {} is more ranks than the sequence has blocks: the model works on {} blocks",
            options_.sp, extent)
            .help("use fewer ranks, or a longer sequence");
      }
    }
    if (options_.dp == 1) return;
    if (plan_.home.batch.empty()) {
      throw Error("--dp {}: no batch dimension to split was found", options_.dp)
          .note("a batch of one sample cannot be divided")
          .help("name the batch dimension with --batch INPUT:AXIS, or use --dp 1");
    }
    for (AtomId atom : batch_atoms()) {
      const int64_t extent = plan_.analysis->atoms().size(atom);
      if (options_.dp > extent) {
        throw Error("--dp {} is more ranks than the batch has samples ({})", options_.dp, extent)
            .help("use a smaller --dp");
      }
    }
  }

  bool is_sequence_axis(size_t k) const { return plan_.mesh.axes()[k].name != "dp"; }

  void plan_axis_number(size_t k) {
    const MeshAxis& axis = plan_.mesh.axes()[k];
    AxisProblem problem;
    problem.ranks = axis.size;
    problem.collective_price = kCollectivePrice;
    if (axis.name == "dp") {
      problem.home = plan_.home.batch;
      problem.home_cuts =
          choose_cut_points(*plan_.analysis, problem.home, batch_atoms(), axis.size);
    } else {
      problem.home = plan_.home.sequence;
      problem.home_cuts =
          choose_cut_points(*plan_.analysis, problem.home, sequence_atoms(), options_.sp);
      problem.nested = true;
      problem.alternative = alternative_of(axis.name);
      problem.alternative_is_home = axis.name == "r";
      if (axis.name != "u") problem.view_replication_price = kViewPrice;
      problem.alternative_forbidden = forbidden_alternatives(k);
      if (axis.name == "r" && options_.ring) problem.ring = ring_keys(problem.home_cuts);
    }
    plan_.axes[k] = like_ == nullptr
                        ? plan_axis(*plan_.analysis, problem)
                        : plan_axis_as(*plan_.analysis, problem, like_->axes[k].labels);
    note_ring(problem, plan_.axes[k]);
    plan_.problems[k] = std::move(problem);
  }

  // By node, the keys of the attentions that may have a ring.
  std::vector<const Factor*> ring_keys(const CutPoints& cuts) {
    std::vector<const Factor*> keys(graph_.nodes().size(), nullptr);
    for (size_t n = 0; n < keys.size(); ++n) {
      if (!attention_operands(graph_.nodes()[n])) continue;
      const Factor* found = key_positions(*plan_.analysis, NodeId(n), plan_.home);
      if (found == nullptr) {  // keys of no sequence are not split to begin with
        if (has_minor_positions(*plan_.analysis, NodeId(n), plan_.home)) {
          plan_.ring_refusals.push_back(
              {NodeId(n), "its positions have several dimensions, and a minor one is split"});
        }
        continue;
      }
      if (std::string reason = why_no_ring(NodeId(n), *found, cuts); !reason.empty()) {
        plan_.ring_refusals.push_back({NodeId(n), std::move(reason)});
      } else {
        keys[n] = found;
      }
    }
    return keys;
  }

  std::string why_no_ring(NodeId id, const Factor& keys, const CutPoints& cuts) const {
    const Factor* queries = query_positions(*plan_.analysis, id, plan_.home);
    if (queries == nullptr) return "its queries are not split by their positions";
    for (const Factor* factor : {&keys, queries}) {
      const auto found = cuts.find(factor->atom);
      if (found == cuts.end() || std::ranges::adjacent_find(found->second) != found->second.end())
        return "a rank would have no positions of its queries or keys";
    }
    return shard::why_no_ring(graph_, graph_.node(id));
  }

  void note_ring(const AxisProblem& problem, const AxisPlan& axis) {
    for (size_t n = 0; n < problem.ring.size(); ++n) {
      const bool takes_part = problem.ring[n] != nullptr && axis.labels[n] == Label::kAlternative;
      // Where other ranks' keys are gathered already, there is nothing to hand on.
      plan_.on_ring[n] = takes_part && !axis.gathered[n];
    }
  }

  // A contraction outside attention stays at home: gathering activations to contract them in
  // another way may move fewer bytes, but every rank would hold them whole. And see make().
  std::vector<bool> forbidden_alternatives(size_t axis) const {
    std::vector<bool> forbidden(graph_.nodes().size(), false);
    for (size_t n = 0; n < forbidden.size(); ++n) {
      const ir::Node& node = graph_.nodes()[n];
      if (node.is("MatMul") || node.is("Gemm")) forbidden[n] = !plan_.attention.touches[n];
      if (!has_sequence(NodeId(n))) continue;
      for (size_t inner = axis + 1; inner < plan_.mesh.num_axes(); ++inner) {
        if (is_sequence_axis(inner) && plan_.axes[inner].labels[n] == Label::kHome)
          forbidden[n] = true;
      }
    }
    return forbidden;
  }

  bool has_sequence(NodeId id) const {
    return std::ranges::any_of(plan_.analysis->node(id).factors, [&](const Factor& factor) {
      return plan_.home.sequence.contains(plan_.analysis->class_of(factor.atom));
    });
  }

  std::string why_gathered(NodeId id, const AxisProblem& problem) const {
    const NodeFactors& factors = plan_.analysis->node(id);
    if (!factors.opaque.empty()) return factors.opaque;
    int home = 0;
    for (const Factor& factor : factors.factors) {
      if (!problem.home.contains(plan_.analysis->class_of(factor.atom))) continue;
      ++home;
      if (factor.role == Role::kCoupled) return "elements along the split dimension meet in it";
    }
    return home > 1 ? "two of its dimensions are the sequence, and neither heads nor queries can "
                      "be split"
                    : "no factor of it can be split";
  }

  void report_gathered() {
    for (size_t k = 0; k < plan_.mesh.num_axes(); ++k) {
      const AxisPlan& axis = plan_.axes[k];
      if (plan_.mesh.axes()[k].size == 1) continue;
      for (size_t n = 0; n < graph_.nodes().size(); ++n) {
        if (!axis.gathered[n]) continue;
        const int64_t bytes = gathered_bytes(NodeId(n), k);
        if (bytes == 0) continue;
        plan_.gathered.push_back({NodeId(n), plan_.mesh.axes()[k].name, bytes,
                                  why_gathered(NodeId(n), plan_.problems[k])});
      }
    }
    if (!options_.strict || plan_.gathered.empty()) return;
    const GatheredOperator& first = plan_.gathered[0];
    throw Error("{} would be gathered over axis {}: {}", graph_.describe(graph_.node(first.node)),
                first.axis, first.reason)
        .note(fmt::format("{} per rank; {} operators in all",
                          format_bytes(static_cast<double>(first.bytes)), plan_.gathered.size()))
        .help("without --strict it is gathered, computed whole on every rank and sliced again")
        .help(fmt::format("the heads divide without gathering for --sp {}",
                          fmt::join(sp_by_heads_alone(plan_.attention_sizes()), ", ")));
  }

  // Masks, counts and positions: gathering them costs next to nothing and is how attention works.
  bool is_one_number_per_token(ValueId value) const {
    for (const AtomList& atoms : plan_.analysis->dims(value)) {
      for (AtomId atom : atoms) {
        const ClassId c = plan_.analysis->class_of(atom);
        if (!plan_.home.sequence.contains(c) && !plan_.home.batch.contains(c)) return false;
      }
    }
    return true;
  }

  int64_t gathered_bytes(NodeId id, size_t axis) const {
    int64_t bytes = 0;
    const ir::Node& node = graph_.node(id);
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      const ir::Node* producer = node.inputs[k] ? graph_.producer(node.inputs[k]) : nullptr;
      if (producer == nullptr || !plan_.analysis->node(id).is_data[k]) continue;
      if (is_one_number_per_token(node.inputs[k])) continue;
      const ir::Value& value = graph_.value(node.inputs[k]);
      const Strategy& from = plan_.axes[axis].chosen(value.producer);
      bytes += reshard_bytes(from.results[static_cast<size_t>(value.result_index)],
                             AxisLayout::replicated(), value.type.num_bytes(),
                             plan_.mesh.axes()[axis].size);
    }
    return bytes;
  }

  const ir::Graph& graph_;
  const PlanOptions& options_;
  const Plan* like_;  // may be null
  Plan plan_;
  const Alternative* kv_heads_ = nullptr;     // in plan_.attention
  const Alternative* head_groups_ = nullptr;  // likewise
};

}  // namespace

Plan make_plan(const ir::Graph& graph, Roles roles, const PlanOptions& options) {
  return PlanMaker(graph, std::move(roles), options).make();
}

Plan make_plan_like(const ir::Graph& graph, Roles roles, const PlanOptions& options,
                    const Plan& like) {
  const ir::Graph& other = like.graph();
  const size_t nodes = std::min(graph.nodes().size(), other.nodes().size());
  for (size_t n = 0; n < nodes; ++n) {
    const ir::Node& here = graph.nodes()[n];
    const ir::Node& there = other.nodes()[n];
    if (here.op == there.op && here.domain == there.domain) continue;
    throw Error("node '{}' is '{}' at another length", graph.describe(here), other.describe(there))
        .note("one plan holds for all lengths");
  }
  if (graph.nodes().size() != other.nodes().size()) {
    throw Error("the graph has {} nodes at one length, {} at another", graph.nodes().size(),
                other.nodes().size())
        .note("one plan holds for all lengths");
  }
  return PlanMaker(graph, std::move(roles), options, &like).make();
}

size_t Plan::axis_named(const std::string& name) const {
  const auto found = std::ranges::find(mesh.axes(), name, &MeshAxis::name);
  return static_cast<size_t>(found - mesh.axes().begin());
}

AttentionSizes Plan::attention_sizes() const {
  return {.found = !attention.contractions.empty(),
          .kv_heads = std::max<int64_t>(kv_heads, 1),
          .head_groups = std::max<int64_t>(head_groups, 1),
          .splits_queries = any_choice(query_positions)};
}

Layout Plan::operand_layout(NodeId node, size_t operand) const {
  Layout layout;
  for (const AxisPlan& axis : axes) layout.push_back(axis.chosen(node).operands[operand]);
  return layout;
}

Layout Plan::result_layout(NodeId node, size_t result) const {
  Layout layout;
  for (const AxisPlan& axis : axes) layout.push_back(axis.chosen(node).results[result]);
  return layout;
}

Layout Plan::value_layout(ValueId value) const {
  const ir::Value& info = graph().value(value);
  if (info.kind != ir::ValueKind::kResult) return Layout(axes.size());
  return result_layout(info.producer, static_cast<size_t>(info.result_index));
}

}  // namespace autosp::shard

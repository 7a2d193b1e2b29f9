#include "transforms/spmd/program.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "base/error.h"
#include "transforms/ring_attention/ring_schedules.h"
#include "transforms/spmd/halo_exchanges.h"

namespace autosp::transforms {

using shard::Interval;
using shard::Layout;

std::string_view name_of(Phase phase) {
  switch (phase) {
    case Phase::kForward:
      return "forward";
    case Phase::kBackward:
      return "backward";
    case Phase::kRecompute:
      return "recompute";
  }
  return "";
}

std::string_view name_of(Purpose purpose) {
  switch (purpose) {
    case Purpose::kReshard:
      return "reshard";
    case Purpose::kGradient:
      return "gradient";
    case Purpose::kLoss:
      return "loss";
    case Purpose::kParameter:
      return "parameter";
  }
  return "";
}

std::string name_suffix(Phase phase) { return phase == Phase::kRecompute ? "~recompute" : ""; }

Phase phase_of(const Instruction& instruction) {
  return std::visit([](const auto& kind) { return kind.phase; }, instruction);
}

std::vector<PlacedId> operands_of(const Instruction& instruction) {
  if (const auto* move = std::get_if<Move>(&instruction)) return {move->from};
  std::vector<PlacedId> operands = std::get<Compute>(instruction).operands;
  std::erase_if(operands, [](PlacedId id) { return !id; });
  return operands;
}

std::vector<PlacedId> results_of(const Instruction& instruction) {
  if (const auto* move = std::get_if<Move>(&instruction)) return {move->to};
  std::vector<PlacedId> results = std::get<Compute>(instruction).results;
  std::erase_if(results, [](PlacedId id) { return !id; });
  return results;
}

namespace {

AtomExtents extents_of(const shard::DimAtoms& dims, const shard::Atoms& atoms) {
  AtomExtents result(dims.size());
  for (size_t d = 0; d < dims.size(); ++d) {
    for (shard::AtomId atom : dims[d]) result[d].push_back(atoms.size(atom));
  }
  return result;
}

bool has_split(const Layout& layout) {
  return std::ranges::any_of(layout, [](const auto& axis) { return axis.is_split(); });
}

class ProgramBuilder {
 public:
  explicit ProgramBuilder(const shard::Plan& plan)
      : plan_(plan), graph_(plan.graph()), versions_(graph_.values().size()) {
    program_.plan = &plan;
    program_.ring_schedules = std::make_shared<RingSchedules>();
    find_forward();
  }

  SpmdProgram build() {
    for (ValueId input : graph_.inputs()) {
      const PlacedId id = place(input, Layout(plan_.mesh.num_axes()), dims_of(input));
      versions_[input.index()].push_back(id);
      program_.inputs.push_back(id);
    }
    for (size_t n = 0; n < graph_.nodes().size(); ++n) compute(NodeId(n));
    for (size_t k = 0; k < graph_.outputs().size(); ++k) {
      const ValueId value = graph_.outputs()[k].value;
      reader_is_gradient_ =
          std::ranges::any_of(plan_.roles.gradients, [k](const auto& g) { return g.output == k; });
      program_.outputs.push_back(obtain(value, Layout(plan_.mesh.num_axes()), dims_of(value)));
    }
    feed_in_shards();
    settle_phases();
    return std::move(program_);
  }

 private:
  void find_forward() {
    forward_.assign(graph_.nodes().size(), false);
    std::vector<ValueId> pending;
    if (plan_.roles.loss) pending.push_back(graph_.outputs()[*plan_.roles.loss].value);
    while (!pending.empty()) {
      const ir::Value& value = graph_.value(pending.back());
      pending.pop_back();
      if (value.kind != ir::ValueKind::kResult || forward_[value.producer.index()]) continue;
      forward_[value.producer.index()] = true;
      for (ValueId input : graph_.node(value.producer).inputs) {
        if (input) pending.push_back(input);
      }
    }
  }

  AtomExtents dims_of(ValueId value) const {
    return extents_of(plan_.analysis->dims(value), plan_.analysis->atoms());
  }

  PlacedId place(ValueId value, Layout layout, AtomExtents atoms) {
    program_.placed.push_back({value, std::move(layout), std::move(atoms)});
    return PlacedId(program_.placed.size() - 1);
  }

  void compute(NodeId id) {
    const ir::Node& node = graph_.node(id);
    reader_is_gradient_ = false;
    reader_is_forward_ = forward_[id.index()];
    Compute instruction{.node = id,
                        .operands = {},
                        .results = {},
                        .phase = reader_is_forward_ ? Phase::kForward : Phase::kBackward};
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      const bool data = node.inputs[k] && plan_.analysis->node(id).is_data[k];
      if (!data) {
        instruction.operands.emplace_back();
        continue;
      }
      const AtomExtents atoms =
          extents_of(plan_.analysis->operand_dims(id, k), plan_.analysis->atoms());
      instruction.operands.push_back(obtain(node.inputs[k], plan_.operand_layout(id, k), atoms));
    }
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (!node.outputs[k]) {
        instruction.results.emplace_back();
        continue;
      }
      const PlacedId result =
          place(node.outputs[k], plan_.result_layout(id, k), dims_of(node.outputs[k]));
      versions_[node.outputs[k].index()].push_back(result);
      instruction.results.push_back(result);
    }
    program_.instructions.emplace_back(std::move(instruction));
  }

  // A version of the value in this layout, made now if there is none.
  PlacedId obtain(ValueId value, const Layout& layout, const AtomExtents& atoms) {
    auto& versions = versions_[value.index()];
    for (PlacedId id : versions) {
      const Placed& placed = program_.at(id);
      // Positions mean the same only under the same division into atoms.
      if (placed.layout == layout && (!has_split(layout) || placed.atoms == atoms)) return id;
    }
    if (graph_.is_constant(value)) {
      versions.push_back(place(value, layout, atoms));
      return versions.back();
    }
    if (versions.empty()) {  // external data: whole on every rank
      AUTOSP_CHECK(graph_.value(value).kind == ir::ValueKind::kExternal);
      versions.push_back(place(value, Layout(plan_.mesh.num_axes()), dims_of(value)));
      return obtain(value, layout, atoms);
    }
    const int64_t bytes = graph_.type(value).num_bytes();
    PlacedId source;
    std::vector<ReshardStep> steps;
    int64_t best = std::numeric_limits<int64_t>::max();
    for (PlacedId candidate : versions) {
      const Placed& placed = program_.at(candidate);
      if (has_split(placed.layout) && placed.atoms != atoms) continue;
      auto candidate_steps = try_steps(placed.layout, layout);
      if (!candidate_steps) continue;
      const int64_t cost = estimated_bytes(*candidate_steps, plan_.mesh, bytes);
      if (cost >= best) continue;
      best = cost;
      source = candidate;
      steps = std::move(*candidate_steps);
    }
    AUTOSP_CHECK(source.valid(), "no way to lay out '{}' as {}", graph_.name_of(value),
                 shard::to_string(layout, plan_.mesh));
    for (ReshardStep& step : steps) {
      const PlacedId next = place(value, step.to, atoms);
      program_.instructions.emplace_back(
          Move{source, next, step.kind, step.axes, phase(value), purpose(value, step.kind)});
      versions_[value.index()].push_back(next);
      source = next;
    }
    return source;
  }

  std::optional<std::vector<ReshardStep>> try_steps(const Layout& from, const Layout& to) const {
    for (size_t k = 0; k < from.size(); ++k) {
      if (from[k].is_split() && to[k].is_partial()) return std::nullopt;
    }
    return reshard_steps(from, to, plan_.mesh);
  }

  Phase phase(ValueId value) const {
    const ir::Value& info = graph_.value(value);
    const bool forward = info.kind != ir::ValueKind::kResult || forward_[info.producer.index()];
    return forward && !reader_is_gradient_ && reader_is_forward_ ? Phase::kForward
                                                                 : Phase::kBackward;
  }

  Purpose purpose(ValueId value, StepKind kind) const {
    if (reader_is_gradient_) return Purpose::kGradient;
    const bool reduces = kind == StepKind::kAllReduce;
    return reduces && graph_.type(value).num_elements() == 1 ? Purpose::kLoss : Purpose::kReshard;
  }

  // A data input whose readers all want the same split over an axis is fed split over that axis.
  void feed_in_shards() {
    for (PlacedId& input : program_.inputs) {
      const ValueId value = program_.at(input).value;
      if (plan_.analysis->is_fresh_per_use(value)) continue;  // parameters stay whole
      std::vector<size_t> slices;  // instructions that slice the whole input
      bool only_sliced = std::ranges::find(program_.outputs, input) == program_.outputs.end();
      for (size_t k = 0; k < program_.instructions.size(); ++k) {
        if (const auto* move = std::get_if<Move>(&program_.instructions[k])) {
          if (move->from != input) continue;
          only_sliced = only_sliced && move->kind == StepKind::kSlice;
          slices.push_back(k);
        } else {
          const auto& operands = std::get<Compute>(program_.instructions[k]).operands;
          only_sliced = only_sliced && std::ranges::find(operands, input) == operands.end();
        }
      }
      if (!only_sliced || slices.empty()) continue;
      absorb(input, slices);
    }
    std::erase_if(program_.instructions, [](const Instruction& instruction) {
      const auto* move = std::get_if<Move>(&instruction);
      return move != nullptr && move->from == move->to;
    });
  }

  void absorb(PlacedId& input, const std::vector<size_t>& slices) {
    const Layout& first = program_.at(std::get<Move>(program_.instructions[slices[0]]).to).layout;
    Layout common = first;
    for (size_t k : slices) {
      const Layout& other = program_.at(std::get<Move>(program_.instructions[k]).to).layout;
      for (size_t axis = 0; axis < common.size(); ++axis) {
        if (common[axis] != other[axis]) common[axis] = {};
        // A minor atom's shard is not one range of the input's dimension.
        if (common[axis].position.atom != 0) common[axis] = {};
      }
    }
    // An inner sequence axis splits alone only if the outer ones do.
    bool outer_split = true;
    for (size_t axis : shard::sequence_axes(plan_.mesh)) {
      if (common[axis].nested && !outer_split) common[axis] = {};
      outer_split = outer_split && common[axis].nested;
    }
    if (!has_split(common)) return;
    const PlacedId fed = place(program_.at(input).value, common, program_.at(input).atoms);
    for (size_t k : slices) {
      auto& move = std::get<Move>(program_.instructions[k]);
      move.from = fed;
      std::erase_if(move.axes, [&](size_t axis) { return !common[axis].is_replicated(); });
      if (program_.at(move.to).layout == common) replace(move.to, fed);
    }
    input = fed;
  }

  // A move made for a backward reader is forward when a forward instruction reads it too.
  void settle_phases() {
    std::vector<bool> forward(program_.placed.size(), false);
    for (size_t k = program_.instructions.size(); k-- > 0;) {
      Instruction& instruction = program_.instructions[k];
      if (auto* move = std::get_if<Move>(&instruction)) {
        if (forward[move->to.index()]) move->phase = Phase::kForward;
      }
      if (phase_of(instruction) != Phase::kForward) continue;
      for (PlacedId operand : operands_of(instruction)) forward[operand.index()] = true;
    }
  }

  void replace(PlacedId old_id, PlacedId new_id) {
    for (Instruction& instruction : program_.instructions) {
      if (auto* move = std::get_if<Move>(&instruction)) {
        if (move->from == old_id) move->from = new_id;
        if (move->to == old_id) move->to = new_id;
      } else {
        for (PlacedId& operand : std::get<Compute>(instruction).operands) {
          if (operand == old_id) operand = new_id;
        }
      }
    }
    for (PlacedId& output : program_.outputs) {
      if (output == old_id) output = new_id;
    }
  }

  const shard::Plan& plan_;
  const ir::Graph& graph_;
  SpmdProgram program_;
  std::vector<std::vector<PlacedId>> versions_;  // by value, in order of making
  std::vector<bool> forward_;                    // by node
  bool reader_is_gradient_ = false;
  bool reader_is_forward_ = false;
};

}  // namespace

SpmdProgram build_program(const shard::Plan& plan) {
  return join_halo_exchanges(ProgramBuilder(plan).build());
}

std::vector<std::vector<Interval>> local_ranges(const Placed& placed, const shard::Mesh& mesh,
                                                int64_t rank) {
  const auto coordinates = mesh.coordinates(rank);
  std::vector<std::vector<Interval>> ranges(placed.atoms.size());
  for (size_t d = 0; d < placed.atoms.size(); ++d) {
    for (size_t a = 0; a < placed.atoms[d].size(); ++a) {
      const shard::AtomPosition position{static_cast<int>(d), static_cast<int>(a)};
      ranges[d].push_back(
          shard::local_range(placed.layout, mesh, coordinates, position, placed.atoms[d][a]));
    }
  }
  return ranges;
}

ir::Shape local_shape(const Placed& placed, const shard::Mesh& mesh, int64_t rank) {
  ir::Shape shape;
  for (const auto& dim : local_ranges(placed, mesh, rank)) {
    int64_t extent = 1;
    for (const Interval& range : dim) extent *= range.extent();
    shape.push_back(extent);
  }
  return shape;
}

}  // namespace autosp::transforms

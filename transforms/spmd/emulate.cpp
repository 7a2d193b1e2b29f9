#include "transforms/spmd/emulate.h"

#include <algorithm>

#include "base/error.h"
#include "ir/builder.h"
#include "ir/rewriter.h"
#include "transforms/decompose_attention.h"
#include "transforms/decompose_draws.h"
#include "transforms/ring_attention/emit_ring.h"
#include "transforms/spmd/emit_ranks.h"
#include "transforms/spmd/geometry.h"
#include "transforms/spmd/localize.h"

namespace autosp::transforms {

using shard::Interval;

namespace {

class Emulator {
 public:
  explicit Emulator(const SpmdProgram& program)
      : program_(program),
        mesh_(program.plan->mesh),
        ranks_(static_cast<size_t>(mesh_.size())),
        build_(out_),
        local_(program.placed.size(), std::vector<ValueId>(ranks_)) {}

  ir::Graph emit() {
    const ir::Graph& graph = program_.graph();
    out_.name = (graph.name.empty() ? "graph" : graph.name) + "_emulated";
    out_.opset = graph.opset;
    out_.metadata = graph.metadata;
    for (size_t k = 0; k < graph.inputs().size(); ++k) {
      const ir::Value& value = graph.value(graph.inputs()[k]);
      const ValueId whole = out_.add_input(value.name, value.type);
      const Placed& placed = program_.at(program_.inputs[k]);
      for (size_t rank = 0; rank < ranks_; ++rank) {
        local_[program_.inputs[k].index()][rank] =
            emit_slice(build_, whole, whole_box(value.type.shape),
                       input_slice(program_, placed, static_cast<int64_t>(rank)), "");
      }
    }
    for (const Instruction& instruction : program_.instructions) {
      const size_t first = out_.nodes().size();
      if (const auto* compute = std::get_if<Compute>(&instruction)) {
        emit_compute(*compute);
      } else {
        emit_move(std::get<Move>(instruction));
      }
      for (size_t n = first; n < out_.nodes().size(); ++n) {
        out_.set_phase(NodeId(n), name_of(phase_of(instruction)));
      }
    }
    for (size_t k = 0; k < program_.outputs.size(); ++k) {
      out_.add_output(graph.outputs()[k].name, local(program_.outputs[k], 0));
    }
    ir::Graph result = decompose_draws(decompose_attention(ir::without_dead_nodes(out_)));
    ir::verify(result);
    return result;
  }

 private:
  static MoveView::Box whole_box(const ir::Shape& shape) {
    MoveView::Box box;
    for (int64_t extent : shape) box.push_back({0, extent});
    return box;
  }

  ValueId local(PlacedId id, size_t rank) {
    ValueId& value = local_[id.index()][rank];
    if (value) return value;
    const ir::Value& original = program_.graph().value(program_.at(id).value);
    if (original.kind == ir::ValueKind::kConstant) {
      value =
          build_.constant(local_constant(program_, id, static_cast<int64_t>(rank)), original.name);
      return value;
    }
    AUTOSP_CHECK(original.kind == ir::ValueKind::kExternal, "'{}' is read before it is made",
                 original.name);
    value = out_.add_external(original.name, original.type, original.external);
    std::ranges::fill(local_[id.index()], value);
    return value;
  }

  static bool is_replicated(const Placed& placed) {
    return std::ranges::all_of(placed.layout,
                               [](const auto& axis) { return axis.is_replicated(); });
  }

  void emit_on_ring(const Compute& compute) {
    std::vector<std::vector<ValueId>> operands(ranks_);
    for (size_t rank = 0; rank < ranks_; ++rank) {
      for (PlacedId operand : compute.operands)
        operands[rank].push_back(operand ? local(operand, rank) : ValueId());
    }
    const auto results =
        emulate_ring(program_, compute, operands, name_suffix(compute.phase), build_);
    for (size_t rank = 0; rank < ranks_; ++rank) {
      for (size_t k = 0; k < results[rank].size(); ++k) {
        if (compute.results[k]) local_[compute.results[k].index()][rank] = results[rank][k];
      }
    }
  }

  void emit_compute(const Compute& compute) {
    if (program_.plan->is_on_ring(compute.node)) return emit_on_ring(compute);
    auto replicated = [&](PlacedId id) { return !id || is_replicated(program_.at(id)); };
    const bool once = std::ranges::all_of(compute.operands, replicated) &&
                      std::ranges::all_of(compute.results, replicated);
    for (size_t rank = 0; rank < ranks_; ++rank) {
      std::vector<ValueId> operands;
      for (PlacedId operand : compute.operands)
        operands.push_back(operand ? local(operand, rank) : ValueId());
      const auto results = emit_local_node(
          program_, compute, static_cast<int64_t>(rank), operands,
          name_suffix(compute.phase) + (once ? "" : fmt::format("@{}", rank)), build_);
      for (size_t k = 0; k < results.size(); ++k) {
        if (!compute.results[k]) continue;
        auto& copies = local_[compute.results[k].index()];
        if (once) {
          std::ranges::fill(copies, results[k]);
        } else {
          copies[rank] = results[k];
        }
      }
      if (once) return;
    }
  }

  void emit_move(const Move& move) {
    std::vector<bool> done(ranks_, false);
    for (size_t rank = 0; rank < ranks_; ++rank) {
      if (done[rank]) continue;
      const auto group = group_of(static_cast<int64_t>(rank), move.axes, mesh_);
      for (int64_t member : group) done[static_cast<size_t>(member)] = true;
      emit_group_move(move, group);
    }
  }

  // The members' values joined (or summed) once; every member then takes its part.
  void emit_group_move(const Move& move, const std::vector<int64_t>& group) {
    const MoveView view(program_, move);
    std::vector<ValueId> parts;
    for (int64_t member : group) {
      parts.push_back(build_.reshape(local(move.from, static_cast<size_t>(member)),
                                     extents(view.before(member))));
    }
    ValueId joined;
    if (move.kind == StepKind::kAllReduce || move.kind == StepKind::kReduceScatter) {
      joined = build_.sum(parts, move_name(program_, move));
    } else if (move.kind == StepKind::kAllToAll || move.kind == StepKind::kAllGather) {
      joined = join(move, view, parts);
    }
    for (size_t k = 0; k < group.size(); ++k) {
      const int64_t member = group[k];
      MoveView::Box held = view.before(member);
      if (move.kind == StepKind::kAllToAll || move.kind == StepKind::kAllGather) {
        for (size_t axis : move.axes) {
          held[view.split_axis_before(axis)] =
              joined_range(view, group, view.split_axis_before(axis));
        }
      }
      ValueId result = joined.valid() ? joined : parts[k];
      if (move.kind == StepKind::kKeepOnFirst) {
        if (!is_first(move.axes, mesh_, member)) result = build_.zeros(out_.type(result));
      } else {
        result = emit_slice(build_, result, held, view.after(member), "");
      }
      local_[move.to.index()][static_cast<size_t>(member)] =
          build_.reshape(result, local_shape(program_.at(move.to), mesh_, member));
    }
  }

  static Interval joined_range(const MoveView& view, const std::vector<int64_t>& group,
                               size_t axis) {
    Interval range = view.before(group[0])[axis];
    for (int64_t member : group) {
      range.begin = std::min(range.begin, view.before(member)[axis].begin);
      range.end = std::max(range.end, view.before(member)[axis].end);
    }
    return range;
  }

  // The group is a grid over the move's mesh axes, innermost fastest: concatenate along the
  // innermost axis' split first.
  ValueId join(const Move& move, const MoveView& view, std::vector<ValueId> parts) {
    for (size_t k = move.axes.size(); k-- > 0;) {
      const auto size = static_cast<size_t>(mesh_.axes()[move.axes[k]].size);
      const size_t axis = view.split_axis_before(move.axes[k]);
      std::vector<ValueId> next;
      for (size_t begin = 0; begin < parts.size(); begin += size) {
        const std::vector<ValueId> run(parts.begin() + static_cast<int64_t>(begin),
                                       parts.begin() + static_cast<int64_t>(begin + size));
        next.push_back(build_.concat(run, static_cast<int64_t>(axis), move_name(program_, move)));
      }
      parts = std::move(next);
    }
    return parts[0];
  }

  const SpmdProgram& program_;
  const shard::Mesh& mesh_;
  size_t ranks_;
  ir::Graph out_;
  ir::Builder build_;
  std::vector<std::vector<ValueId>> local_;  // by placed value and rank
};

}  // namespace

ir::Graph emulate(const SpmdProgram& program) { return Emulator(program).emit(); }

}  // namespace autosp::transforms

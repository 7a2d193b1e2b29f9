#include "transforms/spmd/emit_ranks.h"

#include <fmt/ranges.h>

#include "base/error.h"
#include "ir/builder.h"
#include "ir/rewriter.h"
#include "transforms/ring_attention/emit_ring.h"
#include "transforms/spmd/geometry.h"
#include "transforms/spmd/localize.h"
#include "transforms/spmd/tile_loop.h"
#include "transforms/training/emit_exchange.h"

namespace autosp::transforms {

namespace {

class RankEmitter {
 public:
  RankEmitter(const SpmdProgram& program, int64_t rank)
      : program_(program),
        mesh_(program.plan->mesh),
        rank_(rank),
        build_(out_),
        local_(program.placed.size()),
        exchange_(
            program, rank, [this](PlacedId id) { return local(id); },
            [this](PlacedId id, ValueId value) { local_[id.index()] = value; }, build_) {}

  ir::Graph emit() {
    const ir::Graph& graph = program_.graph();
    out_.name = fmt::format("{}_rank{}", graph.name.empty() ? "graph" : graph.name, rank_);
    out_.opset = graph.opset;
    out_.metadata = graph.metadata;
    for (size_t k = 0; k < graph.inputs().size(); ++k) {
      if (exchange_.shards_input(program_.inputs[k])) continue;
      const Placed& placed = program_.at(program_.inputs[k]);
      const ir::Value& value = graph.value(graph.inputs()[k]);
      local_[program_.inputs[k].index()] =
          out_.add_input(value.name, {value.type.dtype, local_shape(placed, mesh_, rank_)});
    }
    exchange_.add_shards();
    auto loop = program_.tile_loops.begin();
    for (size_t k = 0; k < program_.instructions.size(); ++k) {
      exchange_.before(k);
      if (loop != program_.tile_loops.end() && loop->first == k) {
        emit_loop(*loop);
        k += loop->count - 1;
        ++loop;
      } else if (!exchange_.replaces(k)) {
        emit_instruction(program_.instructions[k]);
      }
      exchange_.after(k);
    }
    for (size_t k = 0; k < program_.outputs.size(); ++k) {
      if (exchange_.carries_output(k)) continue;
      out_.add_output(graph.outputs()[k].name, local(program_.outputs[k]));
    }
    exchange_.add_bucket_outputs();
    ir::Graph result = ir::without_dead_nodes(out_);
    ir::verify(result);
    return result;
  }

 private:
  ValueId local(PlacedId id) {
    ValueId& value = local_[id.index()];
    if (value) return value;
    const ir::Value& original = program_.graph().value(program_.at(id).value);
    if (original.kind == ir::ValueKind::kConstant) {
      value = build_.constant(local_constant(program_, id, rank_), original.name);
    } else {
      AUTOSP_CHECK(original.kind == ir::ValueKind::kExternal, "'{}' is read before it is made",
                   original.name);
      value = out_.add_external(original.name, original.type, original.external);
    }
    return value;
  }

  void emit_instruction(const Instruction& instruction) {
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

  void emit_loop(const TileLoop& loop) {
    emit_tiles(
        *loop.stretch, rank_, [this](PlacedId id) { return local(id); },
        [this](PlacedId id, ValueId value) { local_[id.index()] = value; }, build_);
  }

  void emit_compute(const Compute& compute) {
    std::vector<ValueId> operands;
    for (PlacedId operand : compute.operands)
      operands.push_back(operand ? local(operand) : ValueId());
    const std::string suffix = name_suffix(compute.phase);
    const auto results = program_.plan->is_on_ring(compute.node)
                             ? emit_ring(program_, compute, rank_, operands, suffix, build_)
                             : emit_local_node(program_, compute, rank_, operands, suffix, build_);
    for (size_t k = 0; k < results.size(); ++k) {
      if (compute.results[k]) local_[compute.results[k].index()] = results[k];
    }
  }

  void emit_move(const Move& move) {
    const MoveView view(program_, move);
    const MoveView::Box before = view.before(rank_);
    const MoveView::Box after = view.after(rank_);
    const ValueId x = build_.reshape(local(move.from), extents(before));
    const std::string name = move_name(program_, move);
    ValueId y;
    switch (move.kind) {
      case StepKind::kSlice:
        y = emit_slice(build_, x, before, after, name);
        break;
      case StepKind::kKeepOnFirst:
        y = is_first(move.axes, mesh_, rank_) ? x : build_.zeros(out_.type(x), name);
        break;
      case StepKind::kAllReduce:
        y = collective("AllReduce", x, extents(after), {}, move, name);
        break;
      case StepKind::kAllGather:
        y = along_axis("AllGather", x, view.split_axis_before(move.axes[0]), view, move, name);
        break;
      case StepKind::kReduceScatter:
        y = along_axis("ReduceScatter", x, view.split_axis_after(move.axes[0]), view, move, name);
        break;
      case StepKind::kAllToAll:
        y = exchange(x, view, move, name);
        break;
    }
    local_[move.to.index()] = build_.reshape(y, local_shape(program_.at(move.to), mesh_, rank_));
  }

  ValueId collective(const std::string& op, ValueId x, ir::Shape shape, ir::Attributes attributes,
                     const Move& move, const std::string& name) {
    attributes.set("group", group_of(rank_, move.axes, mesh_));
    return build_.node(op, {x}, ir::Type{build_.dtype(x), std::move(shape)}, std::move(attributes),
                       std::string(ir::kAutospDomain), name);
  }

  ValueId along_axis(const std::string& op, ValueId x, size_t axis, const MoveView& view,
                     const Move& move, const std::string& name) {
    const bool gathers = move.kind == StepKind::kAllGather;
    std::vector<int64_t> sizes;
    for (int64_t peer : group_of(rank_, move.axes, mesh_)) {
      sizes.push_back((gathers ? view.before(peer) : view.after(peer))[axis].extent());
    }
    ir::Attributes attributes{{"axis", static_cast<int64_t>(axis)}, {"sizes", sizes}};
    return collective(op, x, extents(view.after(rank_)), std::move(attributes), move, name);
  }

  ValueId exchange(ValueId x, const MoveView& view, const Move& move, const std::string& name) {
    std::vector<int64_t> send_begin;
    std::vector<int64_t> send_extent;
    std::vector<int64_t> recv_begin;
    std::vector<int64_t> recv_extent;
    auto append = [](std::vector<int64_t>& begin, std::vector<int64_t>& extent,
                     const MoveView::Box& box, const MoveView::Box& origin) {
      for (size_t k = 0; k < box.size(); ++k) {
        begin.push_back(box[k].extent() == 0 ? 0 : box[k].begin - origin[k].begin);
        extent.push_back(box[k].extent());
      }
    };
    const MoveView::Box before = view.before(rank_);
    const MoveView::Box after = view.after(rank_);
    for (int64_t peer : group_of(rank_, move.axes, mesh_)) {
      append(send_begin, send_extent, intersect(before, view.after(peer)), before);
      append(recv_begin, recv_extent, intersect(view.before(peer), after), after);
    }
    ir::Attributes attributes{{"shape", extents(after)},
                              {"send_begin", std::move(send_begin)},
                              {"send_extent", std::move(send_extent)},
                              {"recv_begin", std::move(recv_begin)},
                              {"recv_extent", std::move(recv_extent)}};
    return collective("AllToAll", x, extents(after), std::move(attributes), move, name);
  }

  const SpmdProgram& program_;
  const shard::Mesh& mesh_;
  int64_t rank_;
  ir::Graph out_;
  ir::Builder build_;
  std::vector<ValueId> local_;  // by placed value
  ExchangeEmitter exchange_;
};

}  // namespace

ir::Graph emit_rank(const SpmdProgram& program, int64_t rank) {
  return RankEmitter(program, rank).emit();
}

std::string move_name(const SpmdProgram& program, const Move& move) {
  return fmt::format("{}@{}#{}{}", program.graph().name_of(program.at(move.to).value),
                     name_of(move.kind), move.to.index(), name_suffix(move.phase));
}

namespace {

CollectiveRecord record_of(const ExchangeRecord& entry, const shard::Mesh& mesh) {
  CollectiveRecord record{.node = entry.node,
                          .kind = entry.kind,
                          .value = entry.value,
                          .mesh_axes = {},
                          .group_size = mesh.size(),
                          .bytes_per_rank = entry.bytes,
                          .phase = entry.phase,
                          .purpose = entry.purpose};
  for (const shard::MeshAxis& axis : mesh.axes()) {
    if (axis.size > 1) record.mesh_axes.push_back(axis.name);
  }
  return record;
}

}  // namespace

namespace {

void add_ring(const SpmdProgram& program, const Compute& compute,
              std::vector<CollectiveRecord>& records) {
  if (!program.plan->is_on_ring(compute.node)) return;
  const Ring ring(program, compute);
  for (const RingTransfer& transfer : ring.transfers()) {
    CollectiveRecord record{.node = transfer.node,
                            .kind = transfer.what == RingTransfer::What::kUnseen
                                        ? StepKind::kAllReduce
                                        : StepKind::kAllToAll,
                            .value = program.graph().name_of(program.at(transfer.value).value),
                            .mesh_axes = {"r"},
                            .group_size = static_cast<int64_t>(ring.members()),
                            .phase = compute.phase};
    for (int64_t rank = 0; rank < program.plan->mesh.size(); ++rank) {
      record.bytes_per_rank = std::max(record.bytes_per_rank, ring.bytes_sent(transfer, rank));
    }
    records.push_back(std::move(record));
  }
}

}  // namespace

std::vector<CollectiveRecord> list_collectives(const SpmdProgram& program) {
  std::vector<CollectiveRecord> records;
  const shard::Mesh& mesh = program.plan->mesh;
  const auto add = [&](const std::vector<ExchangeRecord>& exchanged) {
    for (const ExchangeRecord& entry : exchanged) {
      records.push_back(record_of(entry, mesh));
    }
  };
  for (size_t k = 0; k < program.instructions.size(); ++k) {
    add(records_before(program, k));
    if (const auto* compute = std::get_if<Compute>(&program.instructions[k])) {
      add_ring(program, *compute, records);
    }
    const auto* move = std::get_if<Move>(&program.instructions[k]);
    if (move == nullptr || !is_collective(move->kind) || is_replaced(program, k)) {
      add(records_after(program, k));
      continue;
    }
    CollectiveRecord record{.node = move_name(program, *move),
                            .kind = move->kind,
                            .value = program.graph().name_of(program.at(move->to).value),
                            .phase = move->phase,
                            .purpose = move->purpose};
    for (size_t axis : move->axes) {
      record.mesh_axes.push_back(mesh.axes()[axis].name);
      record.group_size *= mesh.axes()[axis].size;
    }
    for (int64_t rank = 0; rank < mesh.size(); ++rank) {
      record.bytes_per_rank = std::max(record.bytes_per_rank, bytes_sent(program, *move, rank));
    }
    records.push_back(std::move(record));
    add(records_after(program, k));
  }
  return records;
}

}  // namespace autosp::transforms

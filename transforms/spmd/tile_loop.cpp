#include "transforms/spmd/tile_loop.h"

#include <algorithm>
#include <map>

#include "transforms/sixteen_bit.h"
#include "transforms/spmd/geometry.h"
#include "transforms/spmd/localize.h"

namespace autosp::transforms {

namespace {

class TileEmitter {
 public:
  TileEmitter(const TiledStretch& stretch, int64_t rank,
              const std::function<ValueId(PlacedId)>& local, ir::Builder& build)
      : stretch_(stretch),
        program_(stretch.program),
        mesh_(stretch.plan.mesh),
        rank_(rank),
        local_(local),
        build_(build) {
    for (const auto& input : stretch.inputs) inputs_[input.tile] = &input;
  }

  void emit(const std::function<void(PlacedId, ValueId)>& define) {
    std::map<PlacedId, std::vector<ValueId>> pieces;  // by outer value
    std::map<PlacedId, ValueId> sums;
    for (int64_t tile = 0; tile < stretch_.tiles; ++tile) {
      begin_tile(tile);
      for (const Instruction& instruction : program_.instructions) {
        const auto& compute = std::get<Compute>(instruction);
        const size_t first = build_.graph().nodes().size();
        emit_compute(compute);
        mark(first, compute.phase);
        for (const TiledStretch::Output* output : outputs_of(compute)) {
          if (output->sum) accumulate(*output, sums[output->outer]);
        }
      }
      for (const auto& output : stretch_.outputs) {
        if (!output.sum) pieces[output.outer].push_back(values_.at(output.tile));
      }
    }
    for (const auto& output : stretch_.outputs) {
      const size_t first = build_.graph().nodes().size();
      define(output.outer,
             output.sum ? build_.cast(sums.at(output.outer), build_.dtype(values_.at(output.tile)))
                        : join(output, std::move(pieces.at(output.outer))));
      mark(first, output.phase);
    }
  }

 private:
  size_t tile_axis() const { return mesh_.num_axes() - 1; }
  int64_t virtual_rank() const { return rank_ * stretch_.tiles + tile_; }
  std::string name(const std::string& value) const { return fmt::format("{}#{}", value, tile_); }

  void begin_tile(int64_t tile) {
    tile_ = tile;
    values_.clear();
  }

  void mark(size_t first, Phase phase) {
    for (size_t n = first; n < build_.graph().nodes().size(); ++n) {
      build_.graph().set_phase(NodeId(n), name_of(phase));
    }
  }

  void emit_compute(const Compute& compute) {
    std::vector<ValueId> operands;
    for (PlacedId id : compute.operands) operands.push_back(id ? operand(id) : ValueId());
    const auto results =
        emit_local_node(program_, compute, virtual_rank(), operands,
                        name_suffix(compute.phase) + fmt::format("#{}", tile_), build_);
    for (size_t k = 0; k < results.size(); ++k) {
      if (compute.results[k]) values_[compute.results[k]] = results[k];
    }
  }

  ValueId operand(PlacedId id) {
    ValueId& value = values_[id];
    if (value) return value;
    const auto found = inputs_.find(id);
    if (found == inputs_.end()) {
      value = build_.constant(local_constant(program_, id, virtual_rank()));
      return value;
    }
    const TiledStretch::Input& input = *found->second;
    value = local_(input.outer);
    if (input.whole == input.tile) return value;
    const MoveView view(program_, Move{.from = input.whole,
                                       .to = input.tile,
                                       .kind = StepKind::kSlice,
                                       .axes = {tile_axis()}});
    const auto before = view.before(virtual_rank());
    const auto after = view.after(virtual_rank());
    const ValueId part = emit_slice(build_, build_.reshape(value, extents(before)), before, after,
                                    name(program_.graph().name_of(program_.at(id).value)));
    value = build_.reshape(part, local_shape(program_.at(id), mesh_, virtual_rank()));
    return value;
  }

  std::vector<const TiledStretch::Output*> outputs_of(const Compute& compute) const {
    std::vector<const TiledStretch::Output*> result;
    for (const auto& output : stretch_.outputs) {
      if (std::ranges::find(compute.results, output.tile) != compute.results.end()) {
        result.push_back(&output);
      }
    }
    return result;
  }

  // Right after the term is made: then sum and one term live, never all terms. Terms of 16 bits are
  // summed in 32 and rounded once.
  void accumulate(const TiledStretch::Output& output, ValueId& sum) {
    const size_t first = build_.graph().nodes().size();
    const ValueId term = widen(build_, values_.at(output.tile));
    sum = sum ? build_.binary("Add", sum, term) : term;
    mark(first, output.phase);
  }

  ValueId join(const TiledStretch::Output& output, std::vector<ValueId> pieces) {
    const MoveView view(program_, Move{.from = output.tile,
                                       .to = output.whole,
                                       .kind = StepKind::kAllGather,
                                       .axes = {tile_axis()}});
    for (size_t k = 0; k < pieces.size(); ++k) {
      tile_ = static_cast<int64_t>(k);
      pieces[k] = build_.reshape(pieces[k], extents(view.before(virtual_rank())));
    }
    const auto axis = static_cast<int64_t>(view.split_axis_before(tile_axis()));
    const ValueId joined = build_.concat(pieces, axis);
    return build_.reshape(joined, local_shape(program_.at(output.whole), mesh_, virtual_rank()));
  }

  const TiledStretch& stretch_;
  const SpmdProgram& program_;
  const shard::Mesh& mesh_;
  int64_t rank_;
  const std::function<ValueId(PlacedId)>& local_;
  ir::Builder& build_;
  int64_t tile_ = 0;
  std::map<PlacedId, const TiledStretch::Input*> inputs_;
  std::map<PlacedId, ValueId> values_;  // of this tile
};

}  // namespace

void emit_tiles(const TiledStretch& stretch, int64_t rank,
                const std::function<ValueId(PlacedId)>& local,
                const std::function<void(PlacedId, ValueId)>& define, ir::Builder& build) {
  TileEmitter(stretch, rank, local, build).emit(define);
}

}  // namespace autosp::transforms

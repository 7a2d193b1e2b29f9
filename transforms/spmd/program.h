// The SPMD program: what every rank executes, in order, before a rank's numbers are bound.
//
// A placed value is a value in one layout; an instruction either computes a node on placed operands
// or moves a value from one layout to another by one step. Cut points stay symbolic here: the same
// program is bound to each rank (emit_ranks.h), or to all of them in one graph (emulate.h).
#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "shard/plan.h"
#include "transforms/spmd/reshard.h"

namespace autosp::transforms {

using PlacedId = Id<struct PlacedTag>;

// Extents of the atoms of every dimension.
using AtomExtents = std::vector<std::vector<int64_t>>;

struct Placed {
  ValueId value;
  shard::Layout layout;
  AtomExtents atoms;  // what the positions in `layout` address
};

// Forward is what the loss needs; all else is backward. Recomputed instructions are copies of
// forward ones, made where the backward pass needs their results (recompute/recompute.h).
enum class Phase : uint8_t { kForward, kBackward, kRecompute };

struct Compute {
  NodeId node;
  std::vector<PlacedId> operands;  // invalid: absent, or not data
  std::vector<PlacedId> results;   // invalid: absent
  Phase phase = Phase::kForward;
};

enum class Purpose : uint8_t { kReshard, kGradient, kLoss, kParameter };
std::string_view name_of(Phase phase);
// What the names of an instruction's nodes and values end in: "~recompute", or nothing.
std::string name_suffix(Phase phase);
std::string_view name_of(Purpose purpose);

struct Move {
  PlacedId from;
  PlacedId to;
  StepKind kind = StepKind::kSlice;
  std::vector<size_t> axes;
  Phase phase = Phase::kForward;
  Purpose purpose = Purpose::kReshard;
};

using Instruction = std::variant<Compute, Move>;

Phase phase_of(const Instruction& instruction);
// What it reads and makes; invalid ids left out.
std::vector<PlacedId> operands_of(const Instruction& instruction);
std::vector<PlacedId> results_of(const Instruction& instruction);

struct TiledStretch;  // spmd/tile_loop.h
struct Exchange;      // training/exchange.h
class RingSchedules;  // ring_attention/ring_schedules.h

// Instructions [first, first + count) run once per tile of tokens (tile/tile.h). They are a legal
// program as they stand, too: whoever knows nothing of tiles executes each of them once.
struct TileLoop {
  size_t first = 0;
  size_t count = 0;
  std::shared_ptr<const TiledStretch> stretch = nullptr;
};

struct SpmdProgram {
  const shard::Plan* plan = nullptr;
  std::vector<Placed> placed;
  std::vector<PlacedId> inputs;   // by graph input; the layout in which a rank is fed
  std::vector<PlacedId> outputs;  // by graph output; replicated
  std::vector<Instruction> instructions;
  std::vector<TileLoop> tile_loops = {};               // in order, apart
  std::shared_ptr<const Exchange> exchange = nullptr;  // null: moves carry every gradient

  // Shared with the programs that are made of this one, of the same plan.
  std::shared_ptr<RingSchedules> ring_schedules = nullptr;

  const ir::Graph& graph() const { return plan->graph(); }
  const Placed& at(PlacedId id) const { return placed[id.index()]; }
  // Constants are bound where they are used: no instruction makes them.
  bool is_constant(PlacedId id) const { return graph().is_constant(at(id).value); }
};

// Chooses, for every operand, the cheapest source among the layouts that exist by then, and feeds
// data inputs in the layout that all their readers share.
SpmdProgram build_program(const shard::Plan& plan);

// --- Geometry of a placed value on one rank.

// Index range of each atom, dimension by dimension.
std::vector<std::vector<shard::Interval>> local_ranges(const Placed& placed,
                                                       const shard::Mesh& mesh, int64_t rank);
ir::Shape local_shape(const Placed& placed, const shard::Mesh& mesh, int64_t rank);

}  // namespace autosp::transforms

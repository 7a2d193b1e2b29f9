// A stretch of a program's instructions that runs once per tile of tokens.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "ir/builder.h"
#include "transforms/spmd/program.h"

namespace autosp::transforms {

// The stretch as a program of its own, over the mesh with one more axis, the tiles: rank r's tile t
// is its rank r * tiles + t.
struct TiledStretch {
  shard::Plan plan;     // the mesh, and the graph
  SpmdProgram program;  // its instructions; `plan` above
  int64_t tiles = 1;

  struct Input {
    PlacedId outer;  // in the program around it
    PlacedId whole;  // what a rank holds
    PlacedId tile;   // what the instructions read; the same where it has no tokens
  };
  struct Output {
    PlacedId outer;
    PlacedId whole;
    PlacedId tile;     // what the instructions make
    bool sum = false;  // over the tiles; otherwise they are joined
    Phase phase = Phase::kForward;
  };
  std::vector<Input> inputs;  // constants with tokens are bound where they are read instead
  std::vector<Output> outputs;
};

// Appends every tile's nodes to the graph. `local` gives a rank's value of the program around the
// stretch, `define` takes those that the stretch makes.
void emit_tiles(const TiledStretch& stretch, int64_t rank,
                const std::function<ValueId(PlacedId)>& local,
                const std::function<void(PlacedId, ValueId)>& define, ir::Builder& build);

}  // namespace autosp::transforms

// Token-wise stretches of a program, executed in tiles of the sequence.
//
// What sharding does over ranks is done here over time. In the loss head and in an MLP every token
// is computed on its own, through values that are much wider than what enters and leaves: [tokens,
// vocabulary] logits, [tokens, inner] activations. Such a region is cut into tiles of tokens, which
// run one after the other, each from the first to the last instruction of the region, so that the
// wide values exist for one tile only. The layouts are those of sharding over one more, innermost
// mesh axis; what is split by tokens is sliced on entry and joined on exit, sums over tokens
// (weight gradients, the loss) are accumulated.
//
// The head's forward and backward are one region: the gradient of the loss does not depend on the
// loss, so logits need not wait for the backward pass.
#pragma once

#include <vector>

#include "transforms/spmd/program.h"
#include "transforms/tile/regions.h"

namespace autosp::transforms {

struct TileOptions {
  // Of a tile, on the rank that holds most; 0: chosen from the widths of the region, and regions
  // that are small as a whole are left alone.
  int64_t tokens = 0;
};

// Instructions are those of one program; another of the same instructions, of the same model at
// another length, can be tiled by the same plan, into as many tiles.
struct TilePlan {
  std::vector<Region> candidates;  // in which instructions read forward values instead of copies
  std::vector<Region> regions;     // of the program in which they do
  std::vector<int64_t> tiles;      // by region
};

// After recomputation has been decided: what is kept from forward to backward crosses a region's
// border and limits what tiling can save.
TilePlan plan_tiles(const SpmdProgram& program, const TileOptions& options = {});

SpmdProgram apply_tiles(const SpmdProgram& program, const TilePlan& plan);

// Both.
SpmdProgram tile(const SpmdProgram& program, const TileOptions& options = {});

}  // namespace autosp::transforms

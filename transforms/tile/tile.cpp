#include "transforms/tile/tile.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "transforms/spmd/tile_loop.h"
#include "transforms/tile/order.h"
#include "transforms/tile/regions.h"

namespace autosp::transforms {

using shard::AtomPosition;
using shard::AxisLayout;
using shard::Cuts;
using shard::Layout;

namespace {

// --- How many tiles.

constexpr int64_t kRank = 0;
// Regions whose wide values are smaller than this, in bytes, are left alone.
constexpr int64_t kSmall = int64_t{64} << 20;
// Shorter tiles would starve the matrix products.
constexpr int64_t kFewestTokens = 256;

// Tokens of a region on a rank: the same for every value that has them.
int64_t tokens_of(const SpmdProgram& program, const Region& region) {
  for (const auto& [id, at] : region.tokens) {
    if (!at) continue;
    const auto ranges = local_ranges(program.at(id), program.plan->mesh, kRank);
    return ranges[static_cast<size_t>(at->dim)][static_cast<size_t>(at->atom)].extent();
  }
  return 0;
}

// The fewest tokens that any rank has: no tile may be empty.
int64_t fewest_tokens(const SpmdProgram& program, const Region& region) {
  int64_t fewest = tokens_of(program, region);
  for (const auto& [id, at] : region.tokens) {
    if (!at) continue;
    for (int64_t rank = 0; rank < program.plan->mesh.size(); ++rank) {
      const auto ranges = local_ranges(program.at(id), program.plan->mesh, rank);
      fewest = std::min(
          fewest, ranges[static_cast<size_t>(at->dim)][static_cast<size_t>(at->atom)].extent());
    }
  }
  return fewest;
}

// Wide values of one tile take no more than what enters and leaves the region takes as a whole.
int64_t number_of_tiles(const SpmdProgram& program, const Region& region,
                        const TileOptions& options) {
  const int64_t tokens = tokens_of(program, region);
  int64_t tiles = 1;
  if (options.tokens > 0) {
    tiles = (tokens + options.tokens - 1) / options.tokens;
  } else if (region.inside >= kSmall) {
    const int64_t wanted = region.inside / std::max<int64_t>(region.edge / 2, kSmall / 4) + 1;
    tiles = std::min(wanted, std::max<int64_t>(1, tokens / kFewestTokens));
  }
  return std::min(tiles, fewest_tokens(program, region));
}

// --- One region as a stretch.

class StretchBuilder {
 public:
  StretchBuilder(const SpmdProgram& from, const Region& region, int64_t tiles)
      : from_(from), region_(region), stretch_(std::make_shared<TiledStretch>()) {
    stretch_->tiles = tiles;
    stretch_->plan.analysis = from.plan->analysis;
    std::vector<shard::MeshAxis> axes = from.plan->mesh.axes();
    axes.push_back({"tile", tiles});
    stretch_->plan.mesh = shard::Mesh(std::move(axes));
    stretch_->program.plan = &stretch_->plan;
  }

  std::shared_ptr<const TiledStretch> build() {
    std::set<PlacedId> made;
    for (size_t k : region_.instructions) {
      Compute compute = std::get<Compute>(from_.instructions[k]);
      for (PlacedId& id : compute.operands) id = id ? tile_of(id, made.contains(id)) : id;
      for (PlacedId& id : compute.results) {
        if (!id) continue;
        made.insert(id);
        const PlacedId outer = id;
        id = tile_of(id, true);
        if (region_.leaving.contains(outer)) add_output(outer, id, compute.phase);
      }
      stretch_->program.instructions.emplace_back(std::move(compute));
    }
    return stretch_;
  }

 private:
  const std::optional<AtomPosition>& tokens(PlacedId id) const { return region_.tokens.at(id); }

  PlacedId place(PlacedId outer, Layout layout) {
    Placed placed = from_.at(outer);
    placed.layout = std::move(layout);
    stretch_->program.placed.push_back(std::move(placed));
    return PlacedId(stretch_->program.placed.size() - 1);
  }

  // What the instructions of the stretch read or make in the place of a value of the program.
  PlacedId tile_of(PlacedId outer, bool made_inside) {
    const auto [known, is_new] = tiles_.try_emplace(outer);
    if (!is_new) return known->second;
    if (tokens(outer)) {
      known->second = place(outer, cut_layout(outer, *tokens(outer)));
    } else {
      Layout layout = from_.at(outer).layout;
      layout.push_back(made_inside ? AxisLayout::partial() : AxisLayout::replicated());
      known->second = place(outer, std::move(layout));
    }
    const PlacedId tile = known->second;
    // Constants with tokens are cut where they are bound.
    if (!made_inside && !(from_.is_constant(outer) && tokens(outer))) {
      const PlacedId whole = tokens(outer) ? place(outer, whole_layout(outer)) : tile;
      stretch_->inputs.push_back({outer, whole, tile});
    }
    return tile;
  }

  void add_output(PlacedId outer, PlacedId tile, Phase phase) {
    const bool sum = !tokens(outer);
    stretch_->outputs.push_back({.outer = outer,
                                 .whole = sum ? tile : place(outer, whole_layout(outer)),
                                 .tile = tile,
                                 .sum = sum,
                                 .phase = phase});
  }

  // The cut points of the tokens with every shard cut into tiles.
  Cuts tile_cuts(const Cuts& shards) const {
    Cuts cuts{shards.front()};
    for (size_t k = 0; k + 1 < shards.size(); ++k) {
      for (int64_t cut : shard::even_cuts(shards[k + 1] - shards[k], stretch_->tiles)) {
        if (cut > 0) cuts.push_back(shards[k] + cut);
      }
    }
    return cuts;
  }

  Layout cut_layout(PlacedId outer, AtomPosition at) const {
    const Placed& placed = from_.at(outer);
    Layout layout = placed.layout;
    bool nested = false;
    Cuts cuts = {0, placed.atoms[static_cast<size_t>(at.dim)][static_cast<size_t>(at.atom)]};
    for (AxisLayout& axis : layout) {
      if (!axis.is_split() || !axis.nested || axis.position != at) continue;
      nested = true;
      cuts = axis.cuts;
      axis.cuts = tile_cuts(axis.cuts);
    }
    layout.push_back(AxisLayout::split(at, tile_cuts(cuts), nested));
    return layout;
  }

  // The same cut points, so that tiles are inside of shards, with all tiles of a shard together.
  Layout whole_layout(PlacedId outer) const {
    Layout layout = cut_layout(outer, *tokens(outer));
    layout.back() = AxisLayout::replicated();
    return layout;
  }

  const SpmdProgram& from_;
  const Region& region_;
  std::shared_ptr<TiledStretch> stretch_;
  std::map<PlacedId, PlacedId> tiles_;  // by outer value
};

// --- The program with every region in one piece.

class Gatherer {
 public:
  Gatherer(const SpmdProgram& program, const TilePlan& plan)
      : from_(program),
        regions_(plan.regions),
        tiles_(plan.tiles),
        region_of_(program.instructions.size(), -1),
        emitted_(program.instructions.size(), false),
        producer_(program.placed.size(), -1) {
    for (size_t r = 0; r < regions_.size(); ++r) {
      for (size_t k : regions_[r].instructions) region_of_[k] = static_cast<int>(r);
    }
    for (size_t k = 0; k < program.instructions.size(); ++k) {
      for (PlacedId id : results_of(program.instructions[k])) {
        producer_[id.index()] = static_cast<int>(k);
      }
    }
    to_ = program;
    to_.instructions.clear();
  }

  // A region stands where its first result is needed, everything else stays in order.
  SpmdProgram gather() {
    for (size_t k = 0; k < from_.instructions.size(); ++k) {
      if (region_of_[k] < 0) emit(k);
    }
    for (size_t k = 0; k < from_.instructions.size(); ++k) emit(k);
    for (TileLoop& loop : to_.tile_loops) {
      const size_t region = first_region_.at(loop.first);
      loop.stretch = StretchBuilder(from_, regions_[region], tiles_[region]).build();
    }
    return std::move(to_);
  }

 private:
  void emit(size_t k) {
    if (emitted_[k]) return;
    if (region_of_[k] >= 0) {
      emit_region(static_cast<size_t>(region_of_[k]));
      return;
    }
    emitted_[k] = true;
    emit_operands(k);
    to_.instructions.push_back(from_.instructions[k]);
  }

  void emit_operands(size_t k) {
    for (PlacedId id : operands_of(from_.instructions[k])) {
      if (producer_[id.index()] >= 0) emit(static_cast<size_t>(producer_[id.index()]));
    }
  }

  void emit_region(size_t r) {
    for (size_t k : regions_[r].instructions) emitted_[k] = true;
    for (size_t k : regions_[r].instructions) emit_operands(k);
    to_.tile_loops.push_back(
        {.first = to_.instructions.size(), .count = regions_[r].instructions.size()});
    first_region_[to_.instructions.size()] = r;
    for (size_t k : regions_[r].instructions) to_.instructions.push_back(from_.instructions[k]);
  }

  const SpmdProgram& from_;
  const std::vector<Region>& regions_;
  const std::vector<int64_t>& tiles_;  // by region
  std::vector<int> region_of_;         // by instruction; -1: none
  std::vector<bool> emitted_;
  std::vector<int> producer_;
  std::map<size_t, size_t> first_region_;  // by first instruction of the new program
  SpmdProgram to_;
};

}  // namespace

TilePlan plan_tiles(const SpmdProgram& program, const TileOptions& options) {
  const auto worth_tiling = [&](const SpmdProgram& in) {
    std::vector<Region> regions = find_regions(in);
    std::erase_if(regions,
                  [&](const Region& region) { return number_of_tiles(in, region, options) < 2; });
    return regions;
  };
  TilePlan plan{.candidates = worth_tiling(program), .regions = {}, .tiles = {}};
  const SpmdProgram direct = read_originals(program, plan.candidates);
  plan.regions = without_cycles(direct, worth_tiling(direct));
  for (const Region& region : plan.regions) {
    plan.tiles.push_back(number_of_tiles(direct, region, options));
  }
  return plan;
}

SpmdProgram apply_tiles(const SpmdProgram& program, const TilePlan& plan) {
  const SpmdProgram direct = read_originals(program, plan.candidates);
  return Gatherer(direct, plan).gather();
}

SpmdProgram tile(const SpmdProgram& program, const TileOptions& options) {
  return apply_tiles(program, plan_tiles(program, options));
}

}  // namespace autosp::transforms

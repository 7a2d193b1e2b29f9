// Regions that can be tiled, found from factors alone.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <vector>

#include "transforms/spmd/program.h"

namespace autosp::transforms {

struct Region {
  std::vector<size_t> instructions;  // ascending
  // Where the tokens are in each value that the region reads or makes; none: the value has no
  // tokens. What the region makes without tokens is a sum over them.
  std::map<PlacedId, std::optional<shard::AtomPosition>> tokens;
  std::set<PlacedId> leaving;  // made here, read elsewhere
  int64_t inside = 0;          // bytes of values with tokens that nothing else reads
  int64_t edge = 0;            // bytes of values with tokens that enter or leave

  double ratio() const { return static_cast<double>(inside) / static_cast<double>(edge + 1); }
};

// Best ratio first; no instruction is in two of them.
std::vector<Region> find_regions(const SpmdProgram& program);

}  // namespace autosp::transforms

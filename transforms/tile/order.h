// What has to hold for regions to run in one piece each. Private to this folder.
#pragma once

#include <vector>

#include "transforms/tile/regions.h"

namespace autosp::transforms {

// A region with forward and backward instructions runs at the end of the forward pass, when forward
// values are still there: its instructions read them instead of their copies. Copies that nothing
// reads any more are dropped.
SpmdProgram read_originals(const SpmdProgram& program, const std::vector<Region>& regions);

// Drops, last first, regions that could not run in one piece: each alone could, but one would need
// results of another and the other way round.
std::vector<Region> without_cycles(const SpmdProgram& program, std::vector<Region> regions);

}  // namespace autosp::transforms

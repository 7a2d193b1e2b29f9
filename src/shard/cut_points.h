// Cut points of the home dimensions.
//
// Windows (Slice, Pad) relate dimensions of different extents, such as 64 tokens and 63 shifted
// labels; where the cut points of both agree, shifted by the window, no element crosses ranks. A
// maximum-weight spanning tree over the windows, weighted by the bytes of all that they cut at one
// place and grown from the tagged dimensions, decides which agree. Windows of blocks (factors.h)
// come before all others, since what is split by blocks can be cut nowhere else.
#pragma once

#include <map>

#include "shard/attention.h"
#include "shard/factors.h"
#include "shard/layout.h"

namespace autosp::shard {

using CutPoints = std::map<AtomId, Cuts>;

// For every atom of a home class; the tagged ones are cut evenly into `parts`.
CutPoints choose_cut_points(const FactorAnalysis& analysis, const ClassSet& home,
                            const std::vector<AtomId>& tagged, int64_t parts);

}  // namespace autosp::shard

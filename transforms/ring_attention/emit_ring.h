// Attention on a ring, as a rank executes it, and as one graph of all ranks says it.
#pragma once

#include <string>
#include <vector>

#include "ir/builder.h"
#include "transforms/ring_attention/ring.h"

namespace autosp::transforms {

// The rank's steps: AllToAll hands blocks on, the next one while this one is attended to (it needs
// nothing of that attention), and brings gradients of keys and values home to their owners, who add
// them up in the order of steps, in float32 where they have 16 bits. `operands` are local; returns
// the local results.
std::vector<ValueId> emit_ring(const SpmdProgram& program, const Compute& compute, int64_t rank,
                               const std::vector<ValueId>& operands, const std::string& suffix,
                               ir::Builder& build);

// The same for every rank, without exchanges. `operands` and the results are by rank; names end in
// `suffix` and the rank.
std::vector<std::vector<ValueId>> emulate_ring(const SpmdProgram& program, const Compute& compute,
                                               const std::vector<std::vector<ValueId>>& operands,
                                               const std::string& suffix, ir::Builder& build);

}  // namespace autosp::transforms

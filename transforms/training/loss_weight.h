// How much a batch weighs among others.
#pragma once

#include <optional>

#include "ir/graph.h"
#include "shard/roles.h"

namespace autosp::transforms {

// What the loss is divided by: the number of its valid tokens, or the sum of their weights, before
// it is raised to one where there are none (Max(count, 1)). Factors
// that are the same for all batches do not matter. The mean over several batches is that of their
// losses, each times this. Nullopt when the loss is no quotient by a single number (a sum, or a sum
// of several means).
std::optional<ValueId> loss_weight(const ir::Graph& graph, const shard::Roles& roles);

}  // namespace autosp::transforms

// Graphs of elementwise operators, and sums along rows, that feed each other.
#pragma once

#include <memory>

#include "ir/graph.h"

namespace autosp::test {

// Of one shape: operands are full, or broadcast along any dimensions.
std::shared_ptr<const ir::Graph> random_chain(unsigned seed);
// The same of `type`, with casts to another floating type and back.
std::shared_ptr<const ir::Graph> random_chain(unsigned seed, ir::DataType type);

}  // namespace autosp::test

// What a rank is fed.
#pragma once

#include "support/run_graph.h"
#include "transforms/spmd/program.h"

namespace autosp::transforms {

// Its slice of every input; `feeds` hold them whole.
test::Tensors rank_feeds(const SpmdProgram& program, const test::Tensors& feeds, int64_t rank);

}  // namespace autosp::transforms

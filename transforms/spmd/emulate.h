// All ranks in one graph of standard operators: collectives become Concat, Sum and Slice across the
// ranks' values, and fused attention is decomposed. Inputs and outputs are the original's, so any
// runtime can compare the two.
#pragma once

#include "transforms/spmd/program.h"

namespace autosp::transforms {

ir::Graph emulate(const SpmdProgram& program);

}  // namespace autosp::transforms

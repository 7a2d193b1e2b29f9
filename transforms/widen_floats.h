// A graph in float64, to tell rounding from what is computed.
#pragma once

#include "ir/graph.h"

namespace autosp::transforms {

// The same computation with every float16, bfloat16 and float32 a float64. Inputs and data files
// keep their types and are converted; outputs are float64.
ir::Graph widen_floats(const ir::Graph& graph);

}  // namespace autosp::transforms

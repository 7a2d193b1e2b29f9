// An order of collectives that other runtimes keep.
//
// Ranks must come to their collectives in one order, and a runtime may execute nodes that do not
// depend on each other in any. So each collective also takes a token that the one before it made:
//
//   y, t1 = AllToAll(x)        w, t2 = AllReduce(v, t1)        u = AllGather(w, t2)
#pragma once

#include "ir/graph.h"

namespace autosp::transforms {

// The rank graph with tokens (int64 scalars of no meaning) through its collectives, in their order.
// Reading a graph drops them again.
ir::Graph thread_tokens(const ir::Graph& graph);

}  // namespace autosp::transforms

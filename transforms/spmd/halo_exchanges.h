// One exchange for all windows of a value.
//
// A convolution along the sequence reads its operand once per tap, each time a few positions
// further on (canonicalize/decompose_convolutions.cpp); so do shifted tokens and neighbouring
// blocks. Each such window has cut points of its own, and fetches from the neighbours what lies
// between these and the value's:
//
//   rank                     0         1         2
//   value x              [0 1 2 3] [4 5 6 7] [8 9 ...
//   window of tap -1           [3 4 5 6] [7 8 9 ...       fetches 3, 7
//   window of tap -2         [2 3 4 5] [6 7 8 ...         fetches 2 3, 6 7
//
// The windows' union is the shard with a halo of 2 before it: one exchange, of which every window
// is a slice.
#pragma once

#include "transforms/spmd/program.h"

namespace autosp::transforms {

// Joins the moves of a phase that lay one value out at other cut points, where their union moves no
// more bytes than they do one by one.
SpmdProgram join_halo_exchanges(SpmdProgram program);

}  // namespace autosp::transforms

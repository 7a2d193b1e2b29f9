// What is known about values before a graph runs.
#pragma once

#include "ir/graph.h"

namespace autosp::ir {

// Whether every element is known to be zero: a constant of zeros, ConstantOfShape, and what only
// moves, repeats, picks or converts elements of such, or pads them with zeros. False for an absent
// value.
bool is_zero(const Graph& graph, ValueId value);

}  // namespace autosp::ir

// What memory planning asks of an operator.
#pragma once

#include "ir/graph.h"

namespace autosp::ir {

// The result has its operand's elements in its operand's order: it needs no bytes of its own.
bool is_view(const Node& node);

// Kernels read element i of every operand before they write element i of the result, and nothing
// else: the result may lie over any operand of its own type.
bool is_elementwise(const Node& node);

}  // namespace autosp::ir

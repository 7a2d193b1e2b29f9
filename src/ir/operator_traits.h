// What memory planning asks of an operator.
#pragma once

#include "ir/graph.h"

namespace autosp::ir {

// The result has its operand's elements in its operand's order: it needs no bytes of its own.
bool is_view(const Node& node);

}  // namespace autosp::ir

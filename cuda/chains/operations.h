// The steps of a chain as C++ expressions, and the functions that these call.
#pragma once

#include <string>

#include "executor/kernels/chain/chain.h"

namespace autosp::chains {

// {0}, {1} and {2} are its arguments. Of steps of elements, not of those along rows.
std::string operation(executor::chain::Op op);

// Whether a result of the arguments' element type needs no rounding.
bool is_exact(executor::chain::Op op);

// Compiled with every source. The same numbers as those of cuda/kernels/unary.cpp and binary.cpp.
extern const char* const kOperations;

}  // namespace autosp::chains

// Numbers between -1 and 1 for benchmarks.
#pragma once

#include "ir/tensor.h"

namespace autosp::bench {

// Of float32, float16 or bfloat16.
ir::Tensor random_tensor(const ir::Type& type, unsigned seed);

}  // namespace autosp::bench

// Matrix products that read a transposed operand where it lies.
#pragma once

#include <memory>

#include "executor/kernel_table.h"

namespace autosp::executor {

// MatMul of Transpose(x), where Transpose exchanges the last two axes, becomes the executor's own
// `autosp::MatMul` of x with the attribute transA or transB, if the table has a kernel for that.
// Transposes that nothing else reads are gone: neither the time nor the memory of a copy is spent,
// which for weights would last from the forward to the backward pass.
// Returns `graph` itself when there is nothing to absorb.
std::shared_ptr<const ir::Graph> absorb_transposes(const std::shared_ptr<const ir::Graph>& graph,
                                                   const KernelTable& kernels);

}  // namespace autosp::executor

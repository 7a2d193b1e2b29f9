// Runs of elementwise operators and row sums as one step.
#pragma once

#include <memory>

#include "executor/kernel_table.h"

namespace autosp::executor {

// Elementwise operators over one shape that feed each other, with sums, maxima and softmaxes along
// the last axis among them, become one node each (kernels/chain/chain.h), if the table has a kernel
// for it: an RMS norm, a gated activation, a cross-entropy, and their gradients. What only they
// read takes no memory. Returns `graph` itself when there is nothing to fuse.
std::shared_ptr<const ir::Graph> fuse_elementwise(const std::shared_ptr<const ir::Graph>& graph,
                                                  const KernelTable& kernels);

}  // namespace autosp::executor

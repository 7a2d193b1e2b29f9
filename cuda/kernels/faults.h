// How a kernel tells the run that an operand's values do not make sense.
#pragma once

#include "cuda/kernels/elements.h"
#include "executor/device.h"
#include "executor/kernel_table.h"

namespace autosp::kernels {

// Writes the node's number, counted from 1, to the device's fault word; the run looks at it after
// every step.
struct Fault {
  int32_t* word;
  int32_t node;
  explicit Fault(const executor::KernelCall& call)
      : word(call.device->faults()),
        node(static_cast<int32_t>(&call.call.node - call.graph->nodes().data()) + 1) {}
  AUTOSP_DEVICE void report() const { *word = node; }
};

}  // namespace autosp::kernels

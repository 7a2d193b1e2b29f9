// The gradient of attention: a row of the table of attention.cpp.
#pragma once

#include "executor/kernel_table.h"

namespace autosp::kernels {

bool fits_backward(const ir::Graph& graph, const ir::Node& node);
int64_t backward_workspace(const ir::Graph& graph, const ir::Node& node, int workers);
void attention_grad(const executor::KernelCall& call);

}  // namespace autosp::kernels

// The CPU's kernel rows, one function per file.
#pragma once

#include "executor/kernel_table.h"

namespace autosp::executor {

std::span<const KernelRow> collective_rows();
std::span<const KernelRow> blas_rows();
std::span<const KernelRow> elementwise_rows();
std::span<const KernelRow> reduction_rows();
std::span<const KernelRow> movement_rows();
std::span<const KernelRow> attention_rows();
std::span<const KernelRow> chain_rows();

}  // namespace autosp::executor

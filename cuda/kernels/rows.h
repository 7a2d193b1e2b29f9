// The rows of this project's own kernels for devices, one function per file.
#pragma once

#include "executor/kernel_table.h"

namespace autosp::kernels {

using executor::KernelRow;

std::span<const KernelRow> unary_rows();
std::span<const KernelRow> binary_rows();
std::span<const KernelRow> select_rows();
std::span<const KernelRow> movement_rows();
std::span<const KernelRow> indexing_rows();
std::span<const KernelRow> reduction_rows();
std::span<const KernelRow> ordering_rows();
std::span<const KernelRow> normalization_rows();
std::span<const KernelRow> matmul_rows();
std::span<const KernelRow> attention_rows();
std::span<const KernelRow> generator_rows();
std::span<const KernelRow> optimizer_rows();

// All of them.
std::vector<KernelRow> own_rows();

}  // namespace autosp::kernels

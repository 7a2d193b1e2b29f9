// Matrix products that finish what follows them: sums with a bias or another tensor, a ReLU.
#pragma once

#include <memory>
#include <string_view>

#include "executor/kernel_table.h"

namespace autosp::executor {

// The executor's own product, of tables that have a kernel for it; `?` may be absent:
//
//   FusedMatMul(a, b, addend?, bias?) = alpha op(a) op(b) + addend + bias, then a ReLU if `relu`
//
// with the attributes transA, transB, alpha and relu. Operands are MatMul's, of rank 2 or more;
// `addend` is of the result's type, `bias` a vector with an entry for each of its columns. In 16
// bits all of it may be added up before the result is rounded, or rounded once before the bias.
inline constexpr std::string_view kFusedMatMul = "FusedMatMul";

// MatMul and Gemm take over the Adds of a row or of a tensor of their own size and the ReLU behind
// them, where nothing else reads what is between, and what is added is there before the product:
// the product stays where it is, so that no value lives longer than before. Views between them do
// not matter. Returns `graph` itself when there is nothing to absorb.
std::shared_ptr<const ir::Graph> absorb_epilogues(const std::shared_ptr<const ir::Graph>& graph,
                                                  const KernelTable& kernels);

}  // namespace autosp::executor

// Constants that are repeated along some axes.
//
// Exporters expand position vectors over the batch before they compute with them:
//
//   Expand([1, S] -> [B, S]) -> Slice, Sub, CumSum, … -> a packed-document mask of [B, 1, S, S]
//
// Folding the expansion would write the repeats out, and everything after it stays unfolded. But an
// operator that treats an axis elementwise, on operands that are all repeated along it, gives a
// result that is repeated along it: it can be evaluated on one entry of that axis, and the result
// expanded.
#pragma once

#include "ir/rewriter.h"

namespace autosp::transforms {

// The node's result, in the new graph, as an Expand of a constant, or an invalid id when its
// operands are not repeated constants, when nothing is saved or when the constant would grow (see
// fold_constants). `is_foldable` says which constants of the new graph may be read.
ValueId fold_repeated(ir::Rewriter& rewriter, const ir::Node& node,
                      const std::function<bool(ValueId)>& is_foldable);

}  // namespace autosp::transforms

// RecomputeBarrier(x, after) -> x, as a custom operator (transforms/recompute/barriers.h says why).
#pragma once

#include "onnxruntime/api.h"

namespace autosp::onnxruntime {

// For one session. `api` outlives it; the caller owns the operator.
const OrtCustomOp* make_recompute_barrier(const OrtApi& api);

}  // namespace autosp::onnxruntime

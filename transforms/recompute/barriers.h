// Barriers that keep recomputation in other runtimes.
//
// A recomputed node equals a forward one, so a runtime that computes equal things once
// (common-subexpression elimination) keeps the forward value instead, and one that chooses its own
// order, or folds constants, may compute the copy long before the backward pass asks for it. Either
// way the memory that recomputation was to save is spent.
//
// A barrier makes an operand of the copy wait for the backward pass: its result is x, and no
// optimiser that looks at graphs alone can tell before `after` is known.
//
//   forward   y = Mul(x, w)                    y = Mul(x, w)
//   backward  dz = ...                         dz = ...
//   again     y~recompute = Mul(x, w)          y~recompute = Mul(x, RecomputeBarrier(w, dz))
#pragma once

#include <optional>

#include "ir/graph.h"

namespace autosp::transforms {

enum class BarrierForm : uint8_t {
  kOperator,  // autosp::RecomputeBarrier(x, after) -> x; reading a graph removes it again
  kStandard,  // Where(IsNaN(one element of `after`), x, x), for runtimes that know nothing of us
};

// Recomputed nodes are those of the phase "recompute". Each run of them waits for one gradient:
// what is live there and lies deepest in the graph. A node of the run that reads another of it
// waits already; of any other one operand is guarded, the smallest there is, since the barrier
// copies it. Sizes are those of `sizes` where it is given: the same nodes at another length of the
// sequence.
ir::Graph insert_recompute_barriers(const ir::Graph& graph, BarrierForm form,
                                    const ir::Graph* sizes = nullptr);

// The body of a function that computes a RecomputeBarrier (see attention_body); nullopt for other
// operators.
std::optional<ir::Graph> barrier_body(const ir::Graph& graph, const ir::Node& node);

}  // namespace autosp::transforms

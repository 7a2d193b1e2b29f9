// Guards against rows without a key: Where(all keys of the row are masked, 0, weights).
//
// ONNX's Attention and many models say so of a mask that they add besides. Where that mask hides by
// minus infinity and adds nothing else, such a guard hides only rows that the mask hides whole: a
// fused operator that knows the mask needs no guard, and the value over queries and keys that it
// was computed from goes with it.
#pragma once

#include "transforms/fuse_attention/masks.h"

namespace autosp::transforms::fusion {

// The term whose additive mask is minus infinity along the rows that term `guard` hides, and only
// along those; nullopt if `guard` says something else. `parts` are those of the terms that were
// taken apart so far, others empty.
std::optional<size_t> guarded_term(const GraphFacts& facts, const Cutout& cutout,
                                   const LocalFactors& factors, const CanonicalFactors& canonical,
                                   const std::vector<Term>& terms, const Meaning& meaning,
                                   const std::vector<TermParts>& parts, size_t guard);

}  // namespace autosp::transforms::fusion

// Moves values between their own layout and the operators' [batch, heads, positions, width].
#pragma once

#include "ir/builder.h"
#include "transforms/fuse_attention/local_factors.h"

namespace autosp::transforms::fusion {

// `x`, whose dimensions hold the atoms `layout`, with one dimension per group. A group of whose
// atoms x has none gets extent 1; one of which it has some is repeated along the others.
ValueId arrange(ir::Builder& build, ValueId x, const AtomList& layout,
                const std::vector<AtomList>& groups, const LocalFactors& factors);

// The way back: `x`, with one dimension per group, as a value of this shape whose dimensions hold
// the atoms `layout` (all those of the groups).
ValueId arrange_back(ir::Builder& build, ValueId x, const std::vector<AtomList>& groups,
                     const AtomList& layout, const ir::Shape& shape, const LocalFactors& factors);

}  // namespace autosp::transforms::fusion

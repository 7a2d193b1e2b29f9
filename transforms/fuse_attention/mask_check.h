// Whether what a term was taken apart into says what the term says.
#pragma once

#include "transforms/fuse_attention/masks.h"

namespace autosp::transforms::fusion {

// Evaluates the term and its parts, in the graph's own types, on random run-time inputs and at some
// of the graph's own positions: random ones, and those where intervals begin and end. Refuses where
// they differ.
void check_parts(const GraphFacts& facts, const Cutout& cutout, const LocalFactors& factors,
                 const CanonicalFactors& canonical, const Term& term, const TermMeaning& meaning,
                 const TermParts& parts, bool has_sink);

}  // namespace autosp::transforms::fusion

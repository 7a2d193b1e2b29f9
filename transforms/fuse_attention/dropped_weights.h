// Dropout on the weights: which terms of a region it is made of, and what of docs/random.md says
// which weights are kept.
#pragma once

#include <optional>

#include "reference/attention_problem.h"
#include "transforms/fuse_attention/local_factors.h"

namespace autosp::transforms::fusion {

// A term that is a step function of one random number per weight: 0 where the weight is dropped.
struct DropTerm {
  ValueId numbers;  // of autosp::RandomUniform, in the whole graph
  ValueId inside;   // the same in the cut-out
  float from = 0;   // kept where from <= number < below
  float below = 1;  // multiples of 2^-24, as the numbers are
  double kept = 1;  // the term's own value there
};

// Whether random numbers reach a value over queries and keys.
bool is_drawn(const GraphFacts& facts, ValueId root);

// Of a term that is drawn, computed in the cut-out as `inside`: evaluated in the graph's own types,
// at as many numbers as tell where it changes. Refuses one that is not monotonic, operator by
// operator, or has other values than two, one of them 0.
DropTerm read_drop_term(const GraphFacts& facts, const Cutout& cutout, ValueId inside);

// Where among the random numbers each weight has its own. The scale is left at 1. Refuses an order
// of the numbers that no stride per index says.
reference::AttentionDropout place_draws(const GraphFacts& facts, const LocalFactors& factors,
                                        const CanonicalFactors& canonical, const DropTerm& term);

}  // namespace autosp::transforms::fusion

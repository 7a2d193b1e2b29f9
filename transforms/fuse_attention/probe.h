// What a region computes, found by feeding it: scale, softcap, and what each of its other operands
// does to the weights.
#pragma once

#include <limits>

#include "transforms/fuse_attention/black_box.h"

namespace autosp::transforms::fusion {

enum class TermKind : uint8_t {
  kMask,    // bool: weights are 0 where it has the masking value
  kAdd,     // added to the scores
  kScale,   // multiplies or divides the scores, constant along keys
  kFactor,  // multiplies the weights, or a bool that makes them 0, constant along keys
  kSink,    // a logit per head that joins the normalisation
  kDrop,    // drops weights at random
  kUnused,  // no effect on the output
};

struct TermMeaning {
  TermKind kind = TermKind::kUnused;
  bool masking_value = true;  // of kMask
  bool divides = false;       // of kScale
};

struct Meaning {
  double scale = 1;
  double softcap = 0;     // 0: none
  double kept_scale = 1;  // what dropout multiplies the weights by that it keeps
  // A logit that joins every row's normalisation and is no operand (1 + sum of exponentials: 0).
  double known_sink = -std::numeric_limits<double>::infinity();
  std::vector<TermMeaning> terms;
};

// Refuses what is no softmax of scaled, capped, biased, masked scores. `square` is a black box with
// square values.
Meaning infer_meaning(const GraphFacts& facts, const BlackBox& square,
                      const std::vector<Term>& terms);

}  // namespace autosp::transforms::fusion

// Proof by numbers: a region equals the formulas it is to be replaced by.
#pragma once

#include "transforms/fuse_attention/flash_formulas.h"

namespace autosp::transforms::fusion {

struct Verified {
  DeadRows dead_rows = DeadRows::kNone;  // kNone: nothing masks
  bool dead_row_gradient = false;
  bool dead_rows_known = true;           // false: what dead rows give, no formula says
  std::map<ResultRole, double> factors;  // of results that leave scaled, 1 as a rule
  double error = 0;                      // the largest, relative to each result's largest entry
};

// What is fed where a term masks.
struct MaskToVerify {
  std::optional<double> number;  // what an additive mask adds
  bool implied = false;          // no row is hidden by this term alone, see TermParts
};

// Compares every result on random operands: with random biases, under random masks, and with rows
// that see no key. Refuses a region whose numbers differ by more than 1e-9.
Verified verify_region(const BlackBox& box, const Cutout& cutout, const Meaning& meaning,
                       const std::vector<Term>& terms, const std::vector<MaskToVerify>& masks);

}  // namespace autosp::transforms::fusion

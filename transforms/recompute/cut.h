// Which forward instructions to execute again, as a minimum cut. Private to this folder.
//
// An instruction is re-executed when it is on the sink's side, a value is wanted when it is.
//
//   source -> instruction   the price of executing it again; infinite where that is forbidden
//   value  -> its readers   infinite: what is executed again wants its operands
//   instruction -> value    the price of keeping a result that is wanted but not made again;
//                           infinite for views, whose operands are kept instead
//   value -> sink           infinite where the backward pass reads it
//
// Values that no instruction makes (inputs, parameters, constants) cost nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "transforms/recompute/forward_pass.h"

namespace autosp::transforms {

struct CutProblem {
  std::vector<bool> forbidden;         // by instruction
  std::vector<int64_t> execute_again;  // by instruction
  std::vector<int64_t> keep;           // by placed value

  // Nothing forbidden or charged but kept bytes; outputs are kept anyway.
  explicit CutProblem(const ForwardPass& forward);
};

// By instruction. Ties fall to keeping; what is re-executed is of use to some backward instruction.
std::vector<bool> solve(const ForwardPass& forward, const CutProblem& problem);

// What the backward pass reads, directly or through re-executed instructions, and is not made
// again; storages, each once, in order of making. `recomputed` loses what is of no use.
std::vector<PlacedId> kept_values(const ForwardPass& forward, std::vector<bool>& recomputed);

}  // namespace autosp::transforms

// How a program's gradients, and at zero 3 its parameters, travel: in buckets, beside the moves
// that the plan makes. Bound to ranks by emit_ranks.h.
#pragma once

#include <map>
#include <vector>

#include "transforms/spmd/program.h"
#include "transforms/training/training_plan.h"

namespace autosp::transforms {

// What a gradient is before the ranks' terms are added.
struct GradientTerms {
  PlacedId value;
  std::vector<size_t> partial;  // mesh axes over which it is a term; alike over the others
  PlacedId sum;                 // what the graph gives out at zero 0
};

struct Exchange {
  TrainingPlan plan;
  std::vector<GradientTerms> terms;  // by parameter
  std::vector<PlacedId> inputs;      // by parameter: the graph input
  // By bucket: the instruction that makes its last term. What is sent follows it, so that backward
  // and exchange of gradients alternate, and terms are freed early.
  std::vector<size_t> complete_after;
  std::vector<bool> replaced;  // by instruction: a move that a bucket stands for
  // By instruction, before which these buckets are gathered: the first that reads one of their
  // parameters in the forward pass, and the first after it.
  std::map<size_t, std::vector<size_t>> gathers;

  bool gathers_parameters() const { return plan.zero == 3; }
};

// `bucket_bytes` limits what is sent at once. At zero 3 every parameter is a bucket of its own,
// since each is gathered for itself. Of a program as it will be emitted: after recomputation and
// tiling.
Exchange plan_exchange(const SpmdProgram& program, const OptimizerSettings& optimizer, int zero,
                       int64_t bucket_bytes, int64_t accumulate);

}  // namespace autosp::transforms

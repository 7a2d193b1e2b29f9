// What of the difference between training curves is rounding.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "compare.h"
#include "executor/npz.h"
#include "training/curves.h"
#include "training/loop.h"

namespace autosp::cli {

// What the whole model computed: loss and gradients of every step by their outputs' names, and the
// parameters after the last.
struct Trajectory {
  std::vector<executor::Arrays> steps;
  executor::Arrays parameters;
};

// By gradient: the largest difference of an entry, on any rank, at each step (from 0).
using Differences = std::map<std::string, std::vector<double>>;
void note_differences(const std::vector<TensorComparison>& tensors, size_t step,
                      Differences& differences);

// Marks gradients that are next to nothing at every step, and parameters that differ only where
// their gradients' differences are no smaller than the gradients.
void mark_rounding(const TrainingJob& job, const Trajectory& whole, const Differences& differences,
                   const std::vector<executor::Arrays>& rank_parameters, Curves& curves);

// The same parameters, each a few units in the last place off.
executor::Arrays nudged(const executor::Arrays& state);

// Marks what differs no more than the whole model from itself when it begins with nudged
// parameters: training amplifies rounding, some models (T5 under Adam) a thousandfold in a few
// steps.
void mark_sensitive(const Trajectory& whole, const Trajectory& nudged, Curves& curves);

}  // namespace autosp::cli

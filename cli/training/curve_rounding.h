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

// How the ranks' losses and gradients differ from the whole model's.
struct Differences {
  struct Step {
    double error = 0;    // the largest of an entry, on any rank
    double allowed = 0;  // without an excuse
  };
  std::map<std::string, std::vector<Step>> steps;    // by output, from the first step
  std::map<std::string, std::vector<float>> shares;  // by gradient: of an entry's size, the largest
};
void note_differences(const std::vector<TensorComparison>& tensors, size_t step,
                      const executor::Arrays& whole, const executor::Arrays& rank,
                      Differences& differences);

// Marks gradients that are next to nothing at every step, and parameters that differ only where
// their gradients' differences are no smaller than the gradients.
void mark_rounding(const TrainingJob& job, const Trajectory& whole, const Differences& differences,
                   const std::vector<executor::Arrays>& rank_parameters, Curves& curves);

// The same parameters, each a few units in the last place off.
executor::Arrays nudged(const executor::Arrays& state);

// Marks what differs, at every step, no more than the whole model from itself when it begins with
// nudged parameters: training amplifies rounding, some models (T5 under Adam) a thousandfold in a
// few steps.
void mark_sensitive(const Trajectory& whole, const Trajectory& nudged,
                    const Differences& differences, Curves& curves);

}  // namespace autosp::cli

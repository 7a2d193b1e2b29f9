// The learning rate of every step: a warm-up, then constant or falling to an end.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace autosp::cli {

struct LearningRate {
  double peak = 1e-3;
  int64_t warmup = 0;              // steps in which it grows linearly to the peak
  std::string decay = "constant";  // or "linear", "cosine"
  int64_t decay_steps = 0;         // the step at which it has fallen to the end; 0: the last one
  double end = 0;

  // Of step 1, 2, ... of `steps`. With warm-up w: peak * step / w up to step w; then with
  // p = (step - w) / (decay_steps - w), at most 1: end + (peak - end) * (1 - p), or for cosine
  // * (1 + cos(pi p)) / 2.
  double at(int64_t step, int64_t steps) const;
};

// --lr, --warmup, --decay, --decay-steps, --lr-end.
void add_learning_rate_options(CLI::App& command, LearningRate& rate);
// Throws Error where the options do not fit together.
void check(const LearningRate& rate, int64_t steps);
// The words that say the same on a command line.
void add_words(const LearningRate& rate, std::vector<std::string>& words);

}  // namespace autosp::cli

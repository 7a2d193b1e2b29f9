#include "training/learning_rate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "command.h"
#include "model_arguments.h"
#include "training/arguments.h"

namespace autosp::cli {

double LearningRate::at(int64_t step, int64_t steps) const {
  if (step <= warmup) {
    return peak * static_cast<double>(step) / static_cast<double>(warmup);
  }
  if (decay == "constant") return peak;
  const int64_t last = decay_steps > 0 ? decay_steps : steps;
  const double progress =
      std::min(1.0, static_cast<double>(step - warmup) /
                        static_cast<double>(std::max<int64_t>(1, last - warmup)));
  const double left =
      decay == "linear" ? 1 - progress : (1 + std::cos(std::numbers::pi * progress)) / 2;
  return end + (peak - end) * left;
}

void add_learning_rate_options(CLI::App& command, LearningRate& rate) {
  command.add_option("--lr", rate.peak, "Learning rate; with --warmup and --decay, the highest")
      ->check(learning_rate())
      ->capture_default_str();
  command.add_option("--warmup", rate.warmup, "Steps in which the rate grows to --lr")
      ->check(at_least_one())
      ->type_name("N");
  command.add_option("--decay", rate.decay, "How it falls after that: constant, linear, cosine")
      ->check(CLI::IsMember({"constant", "linear", "cosine"}))
      ->type_name("SHAPE")
      ->capture_default_str();
  command
      .add_option("--decay-steps", rate.decay_steps,
                  "The step at which it has fallen; --steps when left out")
      ->check(at_least_one())
      ->type_name("N");
  command.add_option("--lr-end", rate.end, "What it falls to")
      ->check(learning_rate())
      ->capture_default_str();
}

void check(const LearningRate& rate, int64_t steps) {
  if (rate.decay == "constant") {
    if (rate.decay_steps == 0 && rate.end == 0) return;
    throw Error("{} is given, but the learning rate does not fall",
                rate.decay_steps > 0 ? "--decay-steps" : "--lr-end")
        .note("--decay says how it falls; it is 'constant' when left out")
        .help("add --decay linear or --decay cosine, or leave the other out");
  }
  const int64_t last = rate.decay_steps > 0 ? rate.decay_steps : steps;
  if (last > rate.warmup) return;
  throw Error("--warmup {} ends after the rate has fallen, at step {}", rate.warmup, last)
      .note("it grows for --warmup steps and then falls until --decay-steps, or --steps without")
      .help("warm up for fewer steps, or let it fall until a later one");
}

void add_words(const LearningRate& rate, std::vector<std::string>& words) {
  const auto add = [&](const char* option, const auto& value) {
    words.insert(words.end(), {option, fmt::format("{}", value)});
  };
  add("--lr", rate.peak);
  add("--decay", rate.decay);
  add("--lr-end", rate.end);
  if (rate.warmup > 0) add("--warmup", rate.warmup);
  if (rate.decay_steps > 0) add("--decay-steps", rate.decay_steps);
}

}  // namespace autosp::cli

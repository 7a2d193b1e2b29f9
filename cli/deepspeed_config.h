// --deepspeed-config: what a DeepSpeed configuration says about how a step is divided.
//
// Its keys are those of https://www.deepspeed.ai/docs/config-json; the table in
// deepspeed_config.cpp has a row for each that means something here.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "transforms/training/optimizer.h"

namespace autosp::cli {

// What it says of the update, for commands that write one.
struct DeepSpeedUpdate {
  std::optional<int> zero_stage;                           // zero_optimization.stage
  std::optional<double> clip_norm;                         // gradient_clipping
  std::optional<transforms::OptimizerSettings> optimizer;  // without clip_norm
  std::vector<std::string> keys;                           // those that say so
};

struct DeepSpeedConfig {
  std::optional<int64_t> sp;            // sequence_parallel_size
  std::optional<int64_t> total_batch;   // train_batch_size
  std::optional<int64_t> micro_batch;   // train_micro_batch_size_per_gpu
  std::optional<int64_t> accumulation;  // gradient_accumulation_steps
  bool wants_autosp = false;            // a pass of "compile" is autosp
  DeepSpeedUpdate update;
  std::vector<std::string> unused;  // keys that nothing here follows from, as "a.b"
};

// Throws Error for what is not a JSON object, or gives a key of the table a value that it cannot
// have. "auto" is no value: such a key is unused.
DeepSpeedConfig read_deepspeed_config(const std::filesystem::path& path);

// What is to be done: a step of one graph is a micro-batch of every data-parallel replica.
struct StepDivision {
  std::optional<int64_t> sp;
  std::optional<int64_t> dp;
  std::optional<int64_t> batch;  // samples of the graph; nullopt where the configuration is silent
};

// Joins the configuration with what the command line gives. Throws Error where they, or keys among
// themselves, contradict each other.
StepDivision divide_step(const DeepSpeedConfig& config, const std::filesystem::path& path,
                         std::optional<int64_t> sp, std::optional<int64_t> dp);

}  // namespace autosp::cli

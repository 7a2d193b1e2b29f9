// What a sharded model will take: memory, work, communication, time. Nothing is run.
#pragma once

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "cost/device.h"
#include "executor/memory_buckets.h"
#include "model_arguments.h"
#include "recompute_arguments.h"
#include "transforms/training/training_plan.h"

namespace autosp::cli {

// "h100", ..., or a JSON file with the fields of cost::Device, rates in units per second; fields
// left out are those of `like` (default: h100).
cost::Device load_device(const std::string& name_or_file);

// What one rank has.
struct DeviceArguments {
  std::string device = "h100";
  std::optional<std::string> memory;  // the device's when left out

  int64_t memory_bytes(const cost::Device& loaded) const;
};

void add_device_options(CLI::App& command, DeviceArguments& arguments);

// What a rank takes, buffer by buffer; bytes.
struct RankMemory {
  int64_t outside = 0;  // parameters, inputs and constants
  int64_t arena = 0;
  std::vector<executor::ArenaBuffer> buffers;
  int64_t after_step = 0;  // everything while gradients are summed or the update runs, if any are

  int64_t most() const { return std::max(arena + outside, after_step); }
};

// Memory is of the rank that takes most, at the step's peak or the update's; work and time of the
// one that computes longest.
struct Prediction {
  executor::MemoryBuckets memory{};  // at the peak
  transforms::TrainingBytes
      kept{};                     // between steps, on the rank of the peak; zero without optimizer
  int64_t peak = 0;               // bytes: the buckets, optimizer state and sums of gradients
  int64_t rank = 0;               // whose peak that is
  int64_t arena = 0;              // bytes: the largest of any rank
  std::vector<RankMemory> ranks;  // one of every kind
  double forward_flops = 0;
  double backward_flops = 0;
  double recompute_flops = 0;
  int64_t collectives = 0;
  int64_t bytes_sent = 0;
  double compute_seconds = 0;
  double collective_seconds = 0;
  double exposed_seconds = 0;  // of those: in which the rank computes nothing

  double flops() const { return forward_flops + backward_flops + recompute_flops; }
  double seconds() const { return compute_seconds + exposed_seconds; }
};

// `overlap`: of a run whose collectives run beside computation (executor/overlap.h).
Prediction predict(const LoadedModel& model, const transforms::SpmdProgram& program,
                   const cost::Device& device, bool overlap = false);

nlohmann::ordered_json to_json(const Prediction& prediction);

// "80GiB", "512 MiB", "1.5GB", or bytes.
int64_t parse_bytes(const std::string& text, const std::string& option);

}  // namespace autosp::cli

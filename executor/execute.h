// One rank's run of one program.
#pragma once

#include <chrono>

#include "executor/communicator.h"
#include "executor/run.h"

namespace autosp::executor {

class RankDevice;

using Clock = std::chrono::steady_clock;

struct ExecuteOptions {
  std::filesystem::path data_folder;
  std::vector<TraceEvent>* events = nullptr;  // null: no trace
  Clock::time_point epoch = Clock::now();     // time zero of the trace
  int repeat = 1;                             // steps to run
  SlowLink link;
  RankDevice* device = nullptr;  // what the program was compiled for; null: the CPU
};

// Throws Error when a feed is missing or of another type than its graph input, and what kernels
// throw, with the node named; Interrupted passes through.
RankResult execute(const Program& program, const Arrays& feeds, Communicator& communicator,
                   const ExecuteOptions& options);

}  // namespace autosp::executor

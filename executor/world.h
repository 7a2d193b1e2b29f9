// Ranks as threads of this process.
#pragma once

#include <functional>

#include "executor/communicator.h"

namespace autosp::executor {

// Runs `run_rank` once per rank, all at once, each with its rank's communicator. Throws what the
// rank threw that failed first; by then every rank has ended. A collective that waits longer than
// `timeout` seconds for another rank ends the run.
void run_world(int size, double timeout,
               const std::function<void(int rank, Communicator& communicator)>& run_rank);

}  // namespace autosp::executor

// One rank's run of one program on a device (device.h): what execute.cpp does on the CPU.
//
// All of a rank's memory is one allocation: the arena, and after it what kernels read of inputs,
// constants and external data. Steps are queued on two streams as stream_plan.h says, and the host
// waits once, at the end of a step. A node that the device has no kernel for runs on the host: its
// operands are brought there, its results back.
#pragma once

#include "executor/execute.h"

namespace autosp::executor {

// As execute(); options.device is what it runs on.
RankResult run_on_device(const Program& program, const Arrays& feeds, Communicator& communicator,
                         const ExecuteOptions& options);

}  // namespace autosp::executor

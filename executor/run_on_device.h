// A rank's runs of programs on a device (device.h): what execute.cpp does on the CPU.
//
// All of a rank's memory is one allocation: the arena, and after it what kernels read of inputs
// that are fed, constants and external data. Steps are queued on two streams as stream_plan.h says,
// and the host waits once, at the end of a step. A node that the device has no kernel for runs on
// the host: its operands are brought there, its results back.
#pragma once

#include "executor/session.h"

namespace autosp::executor {

// As make_session(), but for repeated steps of a program that keeps nothing; options.device is what
// the programs run on.
std::unique_ptr<Session> make_device_session(const std::vector<const Program*>& programs,
                                             Communicator& communicator,
                                             const ExecuteOptions& options);

}  // namespace autosp::executor

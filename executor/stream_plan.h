// Which step of a program runs on which of a device's streams, and what it waits for.
//
// Collectives run on the exchange stream, all else on the compute stream, so that an exchange goes
// on while kernels run. A step waits for the latest one on the other stream that touches bytes of
// the arena that it writes, or writes bytes that it reads: an exchange starts as soon as its
// operand is there and its result's place is free, and the first step that needs it waits, not the
// next one.
#pragma once

#include <vector>

#include "executor/program.h"

namespace autosp::executor {

struct StreamStep {
  bool runs = false;       // false: a view
  bool on_host = false;    // on the host, when the compute stream has come this far
  bool exchanges = false;  // on the exchange stream
  int waits_for = -1;      // a step of the other stream
  bool awaited = false;    // some step waits for this one
};

// By step. `device_exchange`: collectives work on device memory; otherwise they run on the host,
// and nothing on the exchange stream. The compute stream has to wait for the exchange stream after
// the last step.
std::vector<StreamStep> plan_streams(const Program& program, bool device_exchange);

}  // namespace autosp::executor

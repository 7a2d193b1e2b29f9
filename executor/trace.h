// Time lines of a run, in the Trace Event Format that chrome://tracing and Perfetto show.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace autosp::executor {

struct TraceEvent {
  std::string name;      // the node
  std::string category;  // the operator
  int rank = 0;
  double start = 0;     // seconds since the run began
  double duration = 0;  // seconds
  int64_t bytes = 0;    // moved to other ranks; 0 for computations
  bool beside = false;  // a collective that ran beside computations
};

// One track per rank, and one for its collectives where they ran beside computations. Appears under
// its name by rename.
void write_trace(const std::filesystem::path& path, const std::vector<TraceEvent>& events);

}  // namespace autosp::executor

// --device and what goes with it: what ranks run on, and how.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "executor/device_module.h"

namespace autosp::cli {

struct RunDevice {
  std::string name = "cpu";  // or "cuda"
  executor::BackendOptions options;
  bool fuse = false;  // elementwise operators that feed each other run as one step
};

// --device, --tf32 and --fuse.
void add_run_device_options(CLI::App& command, RunDevice& arguments);

// Null for the CPU. Throws Error where the device is not there.
std::shared_ptr<executor::Backend> open_device(const RunDevice& arguments);

// The same options, for another process.
std::vector<std::string> words_of(const RunDevice& arguments);

}  // namespace autosp::cli

// --device: what ranks run on.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "executor/device_module.h"

namespace autosp::cli {

struct DeviceArguments {
  std::string name = "cpu";  // or "cuda"
  executor::BackendOptions options;
};

// --device and --tf32.
void add_device_options(CLI::App& command, DeviceArguments& arguments);

// Null for the CPU. Throws Error where the device is not there.
std::shared_ptr<executor::Backend> open_device(const DeviceArguments& arguments);

// The same options, for another process.
std::vector<std::string> words_of(const DeviceArguments& arguments);

}  // namespace autosp::cli

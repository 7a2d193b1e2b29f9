// The devices that a suite runs on.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "executor/device.h"

namespace autosp::test {

// "emulated" and "emulated_backwards" (emulated_device.h), and "cuda".
std::vector<std::string> device_names();

struct FoundDevice {
  std::shared_ptr<executor::Backend> backend;  // null where the device is not there
  std::string reason;                          // why not
};
FoundDevice find_device(const std::string& name);

}  // namespace autosp::test

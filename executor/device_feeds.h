// What one program on a device is fed: on the host, and on the device where kernels read it there.
#pragma once

#include <map>
#include <string>

#include "executor/device_memory.h"
#include "ir/tensor.h"

namespace autosp::executor {

class DeviceFeeds {
 public:
  DeviceFeeds(Device& device, DeviceMemory& memory) : device_(device), memory_(memory) {}

  // Kernels of the device read the input; before the memory is allocated. Its offset there.
  int64_t place(const std::string& name, int64_t bytes);

  // The input is this; where kernels of the device read it, it is copied there, unless it is there.
  void set(const std::string& name, const ir::Tensor& tensor);
  const ir::Tensor& on_host(const std::string& name) const { return feeds_.at(name); }

 private:
  Device& device_;
  DeviceMemory& memory_;
  std::map<std::string, int64_t> offsets_;  // of inputs with a place on the device
  std::map<std::string, ir::Tensor> feeds_;
};

}  // namespace autosp::executor

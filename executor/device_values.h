// Inputs of a rank's programs by name: on the host, on the device, or on both.
#pragma once

#include <map>
#include <string>

#include "executor/device_memory.h"
#include "ir/tensor.h"

namespace autosp::executor {

class DeviceValues {
 public:
  DeviceValues(Device& device, DeviceMemory& memory) : device_(device), memory_(memory) {}

  // An input of some program; all that have one of that name give it the same type.
  void declare(const std::string& name, const ir::Type& type);
  // Kernels of the device read it; before the memory is allocated. Its offset there.
  int64_t place(const std::string& name);

  bool has(const std::string& name) const { return values_.contains(name); }
  // The types of all that have been set or taken.
  std::map<std::string, ir::Type> types() const;

  // The value is this; where kernels of the device read it, it is copied there, unless it is there.
  void set(const std::string& name, const ir::Tensor& tensor);
  // The value is what lies there in the device's memory, at the end of the compute stream.
  void take(const std::string& name, const std::byte* from);
  // On the host.
  const ir::Tensor& on_host(const std::string& name);

 private:
  struct Value {
    ir::Type type;
    int64_t offset = -1;  // in the memory; negative: no kernel of the device reads it
    bool exists = false;
    ir::Tensor host;  // of no type: it is on the device alone
  };
  Value& at(const std::string& name) { return values_.at(name); }
  ir::Tensor downloaded(const ir::Type& type, const std::byte* from);

  Device& device_;
  DeviceMemory& memory_;
  std::map<std::string, Value> values_;
};

}  // namespace autosp::executor

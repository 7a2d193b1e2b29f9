// Inputs of programs by name, what is kept for all of a rank's programs or what one of them is fed:
// on the host, on the device, or on both.
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

  bool exists(const std::string& name) const;
  // Bytes of its value, none where it has none.
  int64_t bytes(const std::string& name) const;

  // The value is this; where kernels of the device read it, it is copied there, unless it is there.
  void set(const std::string& name, const ir::Tensor& tensor);
  void set_zeros(const std::string& name);
  // The value is what lies there in the device's memory, at the end of the compute stream.
  void take(const std::string& name, const std::byte* from);
  // It has none from now on.
  void drop(const std::string& name);
  // On the host.
  const ir::Tensor& on_host(const std::string& name);

 private:
  struct Value {
    ir::Type type;
    int64_t offset = -1;  // in the memory; negative: no kernel of the device reads it
    bool exists = false;
    ir::Tensor host;  // of no type: it is on the device alone
  };
  Value& at(const std::string& name);
  ir::Tensor downloaded(const ir::Type& type, const std::byte* from);

  Device& device_;
  DeviceMemory& memory_;
  std::map<std::string, Value> values_;
};

}  // namespace autosp::executor

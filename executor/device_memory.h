// One rank's memory on a device: an arena, and what came from the host.
#pragma once

#include <algorithm>
#include <map>

#include "base/ids.h"
#include "executor/device.h"

namespace autosp::executor {

// A rank's memory on a device, and where what came from the host lies in it.
class DeviceMemory {
 public:
  DeviceMemory(Device& device, int64_t arena) : device_(device), size_(aligned(arena)) {}
  ~DeviceMemory() {
    if (base_ != nullptr) device_.release(base_);
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // Room for a source (an input, a constant, external data); before allocate().
  void add(ValueId source, int64_t bytes) {
    if (offsets_.emplace(source, size_).second) size_ += aligned(bytes);
  }
  void allocate() { base_ = device_.allocate(std::max(size_, kAlignment)); }

  std::byte* at(int64_t offset) const { return base_ + offset; }
  std::byte* source(ValueId id) const { return base_ + offsets_.at(id); }
  const std::map<ValueId, int64_t>& sources() const { return offsets_; }

 private:
  static constexpr int64_t kAlignment = 256;
  static int64_t aligned(int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  Device& device_;
  int64_t size_;
  std::byte* base_ = nullptr;
  std::map<ValueId, int64_t> offsets_;
};

}  // namespace autosp::executor

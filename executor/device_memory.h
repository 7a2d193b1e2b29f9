// One rank's memory on a device: an arena, and behind it what came from the host.
#pragma once

#include <algorithm>

#include "executor/device.h"

namespace autosp::executor {

// All of it is one allocation.
class DeviceMemory {
 public:
  DeviceMemory(Device& device, int64_t arena) : device_(device), size_(aligned(arena)) {}
  ~DeviceMemory() {
    if (base_ != nullptr) device_.release(base_);
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // The offset of so many bytes behind all others; before allocate().
  int64_t add(int64_t bytes) {
    const int64_t offset = size_;
    size_ += aligned(bytes);
    return offset;
  }
  void allocate() { base_ = device_.allocate(std::max(size_, kAlignment)); }

  std::byte* at(int64_t offset) const { return base_ + offset; }

 private:
  static constexpr int64_t kAlignment = 256;
  static int64_t aligned(int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  Device& device_;
  int64_t size_;
  std::byte* base_ = nullptr;
};

}  // namespace autosp::executor

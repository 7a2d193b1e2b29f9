// What a rank holds of a device, from one program to the next.
#pragma once

#include <memory>
#include <string>

#include "executor/device.h"
#include "executor/kernel_table.h"

namespace autosp::executor {

class RankDevice {
 public:
  // `backend` and `host` must outlive it. All ranks of `host` come together here. Throws Error.
  RankDevice(Backend& backend, Communicator& host);
  ~RankDevice();
  RankDevice(const RankDevice&) = delete;
  RankDevice& operator=(const RankDevice&) = delete;

  Device& device() { return *device_; }
  // Between the devices' memories; null where it goes through the host's.
  Communicator* exchange() { return exchange_; }
  // Why through the host's memory; empty where it does not.
  const std::string& notice() const { return notice_; }

 private:
  std::unique_ptr<Device> device_;
  std::unique_ptr<Communicator> own_;
  Communicator* exchange_ = nullptr;
  std::string notice_;
};

}  // namespace autosp::executor

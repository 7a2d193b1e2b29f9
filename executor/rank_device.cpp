#include "executor/rank_device.h"

namespace autosp::executor {

RankDevice::RankDevice(Backend& backend, Communicator& host) : device_(backend.open(host.rank())) {
  if (host.use(device_.get())) {
    exchange_ = &host;
  } else {
    own_ = backend.connect(*device_, host, notice_);
    exchange_ = own_.get();
  }
  host.use(nullptr);
}

RankDevice::~RankDevice() { own_.reset(); }

}  // namespace autosp::executor

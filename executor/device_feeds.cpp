#include "executor/device_feeds.h"

namespace autosp::executor {

int64_t DeviceFeeds::place(const std::string& name, int64_t bytes) {
  const auto [found, is_new] = offsets_.try_emplace(name, 0);
  if (is_new) found->second = memory_.add(bytes);
  return found->second;
}

void DeviceFeeds::set(const std::string& name, const ir::Tensor& tensor) {
  ir::Tensor& fed = feeds_[name];
  const bool same = fed.type() == tensor.type() && fed.bytes().data() == tensor.bytes().data();
  fed = tensor;
  const auto offset = offsets_.find(name);
  const int64_t bytes = tensor.type().num_bytes();
  if (same || offset == offsets_.end() || bytes == 0) return;
  device_.upload(StreamId::kCompute, memory_.at(offset->second), tensor.bytes().data(), bytes);
}

}  // namespace autosp::executor

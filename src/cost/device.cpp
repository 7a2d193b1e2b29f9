#include "cost/device.h"

#include <algorithm>

namespace autosp::cost {

namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

}  // namespace

// Published figures: cuDNN's attention on an H200 at 688 and 581 TFLOP/s forward and backward,
// 8192^3 products at 780, copies at 4.3 TB/s; NCCL's all-to-all over NVLink at 200 GB/s per rank.
// The H100 is the same chip with 3.35 instead of 4.8 TB/s. A100: 312 TFLOP/s at 77 %, 2.04 TB/s at
// 85 %, NVLink at half. The CPU was measured on two shared cores of a Sapphire Rapids.
const std::vector<Device>& known_devices() {
  static const std::vector<Device> kDevices = {
      {"h100", 80 * kGiB, 740e12, 370e12, 650e12, 550e12, 3.0e12, 200e9, 10e-6},
      {"h200", 141e9, 780e12, 390e12, 688e12, 581e12, 4.3e12, 200e9, 10e-6},
      {"a100", 80 * kGiB, 240e12, 120e12, 190e12, 150e12, 1.7e12, 100e9, 10e-6},
      {"cpu", 16 * kGiB, 150e9, 150e9, 100e9, 100e9, 10e9, 4e9, 20e-6},
  };
  return kDevices;
}

std::optional<Device> find_device(std::string_view name) {
  const auto found = std::ranges::find(known_devices(), name, &Device::name);
  if (found == known_devices().end()) return std::nullopt;
  return *found;
}

double seconds(const Device& device, const Cost& cost, bool wide) {
  const double product = wide ? device.product_wide : device.product;
  double rate = 0;
  switch (cost.family) {
    case Family::kView:
    case Family::kCollective:
      return 0;
    case Family::kProduct:
      rate = product;
      break;
    // Fused attention on wide floats is as much slower as products are.
    case Family::kAttention:
      rate = device.attention * product / device.product;
      break;
    case Family::kAttentionGrad:
      rate = device.attention_grad * product / device.product;
      break;
    case Family::kMovement:
      return cost.bytes / device.bandwidth;
  }
  return std::max(cost.flops / rate, cost.bytes / device.bandwidth);
}

double collective_seconds(const Device& device, double bytes_sent) {
  return device.latency + bytes_sent / device.link;
}

}  // namespace autosp::cost

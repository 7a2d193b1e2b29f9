// What a device can do, as achieved in practice rather than at best.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cost/operator_cost.h"

namespace autosp::cost {

struct Device {
  std::string name;
  double memory = 0;          // bytes of one rank
  double product = 0;         // operations per second of matrix products on 16-bit floats
  double product_wide = 0;    // likewise on 32-bit floats
  double attention = 0;       // of fused attention, forward, over visible pairs
  double attention_grad = 0;  // likewise backward
  double bandwidth = 0;       // bytes per second of device memory
  double link = 0;            // bytes per second that one rank sends to others
  double latency = 0;         // seconds that any collective takes

  bool operator==(const Device&) const = default;
};

// "h100", "h200", "a100" (80 GiB each but the h200's 141) and "cpu" (two cores with AVX-512).
const std::vector<Device>& known_devices();
std::optional<Device> find_device(std::string_view name);

// Seconds: the larger of what computing and what moving bytes takes. `wide` says that the products
// are of 32-bit floats.
double seconds(const Device& device, const Cost& cost, bool wide);
// Of a collective that sends so many bytes from each rank.
double collective_seconds(const Device& device, double bytes_sent);

}  // namespace autosp::cost

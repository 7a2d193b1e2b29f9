// Numbers drawn by place, on a device: those of reference::UniformDraws.
#pragma once

#include "base/philox.h"
#include "cuda/kernels/elements.h"

namespace autosp::kernels {

// Number `index` of a stream, in [0, 1).
AUTOSP_DEVICE inline float draw(uint64_t seed, uint32_t stream, int64_t step, uint64_t index) {
  constexpr uint64_t kPerBlock = 4;
  const uint64_t block = index / kPerBlock;
  const philox::Counter words =
      philox::words({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32U), stream,
                     static_cast<uint32_t>(static_cast<uint64_t>(step))},
                    {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32U)});
  return static_cast<float>(words[index % kPerBlock] >> 8U) * 0x1p-24F;
}

}  // namespace autosp::kernels

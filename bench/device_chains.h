// Fused chains on a device beside their operators one by one, for bench_device.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>

#include "executor/device.h"
#include "ir/type.h"

namespace autosp::bench {

// An RMS norm and a gated activation of [rows, columns], as transformers have them: in float32
// between casts from and to `type`. Seconds of their kernels, fused and not, and bytes of operands
// and results per second of the fused one. Throws Error where the two differ.
nlohmann::ordered_json measure_chains(const std::shared_ptr<executor::Backend>& backend,
                                      int64_t rows, int64_t columns, ir::DataType type);

}  // namespace autosp::bench

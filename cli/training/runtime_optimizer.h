// --optimizer-model: the optimizer of ONNX Runtime's training artifacts.
#pragma once

#include <filesystem>

#include "transforms/training/optimizer.h"

namespace autosp::cli {

// What optimizer_model.onnx says. Throws Error for a file without an update that this project has
// (AdamWOptimizer with corrected bias, SGDOptimizerV2; with or without InplaceClipGradNorm).
transforms::OptimizerSettings read_optimizer_model(const std::filesystem::path& path);

}  // namespace autosp::cli

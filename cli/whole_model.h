// The model that a folder was sharded from.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "compare.h"
#include "executor/run.h"
#include "ir/graph.h"
#include "onnx/manifest.h"

namespace autosp::cli {

// The model as it is, at the dimensions it was sharded for. Throws Error when it is not the one
// that the manifest of `folder` names.
ir::Graph load_whole(const std::filesystem::path& model, const std::filesystem::path& folder,
                     const onnx_io::Manifest& manifest);

struct Comparison {
  executor::Arrays whole;                 // outputs of the whole model
  std::vector<TensorComparison> tensors;  // compare_outputs
};

// Runs the whole model and compares the ranks' outputs with its own. Where a loss or gradient
// differs, the model runs in float64 too (mark_as_exact; mark_rounding, unless it converts floats
// to fewer bits); without kernels or room for that it stays different.
Comparison compare_with_whole(const std::shared_ptr<const ir::Graph>& whole,
                              const executor::Arrays& feeds, const executor::RunOptions& options,
                              const onnx_io::Manifest& manifest,
                              const std::vector<executor::Arrays>& ranks,
                              std::optional<double> tolerance);

}  // namespace autosp::cli

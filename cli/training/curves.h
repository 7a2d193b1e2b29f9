// Training curves of a sharded model against those of the whole one.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "compare.h"
#include "ir/graph.h"
#include "onnx/manifest.h"

namespace autosp::executor {
class Backend;
}

namespace autosp::cli {

struct CurveOptions {
  std::filesystem::path folder;       // sharded with --optimizer
  std::filesystem::path data_folder;  // of the model's external data
  std::filesystem::path feed;         // as train's --data; empty: generated
  uint64_t seed = 1;
  int64_t steps = 1;
  double rate = 1e-3;
  std::optional<double> tolerance;
  double timeout = 60;
  std::shared_ptr<executor::Backend> backend;  // of the ranks; the whole model runs on the CPU
  bool fuse = false;                           // of the ranks; the whole model is not fused
};

struct LossPoint {
  double whole = 0;
  std::vector<double> ranks;
};

struct Curves {
  std::vector<LossPoint> losses;             // by step
  std::vector<TensorComparison> tensors;     // loss and gradients: of the step that is furthest off
  std::vector<int64_t> steps;                // of each of these, from 1
  std::vector<TensorComparison> parameters;  // after the last step
  std::set<std::string> notices;             // what the user should know of how the ranks ran

  bool equal() const;
};

// Trains both on the same batches. Gradients of parameters are compared at every step, by name.
Curves compare_curves(const std::shared_ptr<const ir::Graph>& whole,
                      const onnx_io::Manifest& manifest, const CurveOptions& options);

}  // namespace autosp::cli

// Why a sharded model may differ from the whole one: what goes wrong in sequence parallelism, each
// tried out on the whole model.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "compare.h"
#include "executor/run.h"
#include "ir/graph.h"
#include "onnx/manifest.h"

namespace autosp::cli {

struct Difference {
  const onnx_io::Manifest& manifest;
  std::shared_ptr<const ir::Graph> whole_graph;
  const executor::RunOptions& options;         // of the whole model
  const executor::Arrays& feeds;               // global
  const executor::Arrays& whole;               // outputs of the whole model
  const std::vector<executor::Arrays>& ranks;  // outputs
  const std::vector<TensorComparison>& tensors;
};

// One line for each cause that explains the numbers; none where nothing known does. Runs the whole
// model with changed inputs: at most once per rank and a few times more.
std::vector<std::string> likely_causes(const Difference& difference);

}  // namespace autosp::cli

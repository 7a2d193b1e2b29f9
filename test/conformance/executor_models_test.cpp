// The executor against the reference kernels on every committed training graph: loss and every
// gradient, and the planned peak against the measured one.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "executor/run.h"
#include "onnx/model.h"
#include "support/run_graph.h"
#include "support/source_folder.h"
#include "transforms/pipeline.h"

namespace autosp::executor {
namespace {

namespace fs = std::filesystem;

const fs::path kGraphs = test::source_folder() / "models/graphs";

std::vector<std::string> committed_graphs() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kGraphs)) {
    if (entry.path().extension() == ".onnx") names.push_back(entry.path().stem().string());
  }
  std::ranges::sort(names);
  return names;
}

class ExecutorModels : public testing::TestWithParam<std::string> {};

TEST_P(ExecutorModels, AgreesWithTheReferenceKernels) {
  const fs::path path = kGraphs / (GetParam() + ".onnx");
  onnx_io::ImportOptions options;
  for (const auto& dim : onnx_io::symbolic_dims(path)) {
    options.dims[dim.name] = dim.name.find("batch") != std::string::npos ? 2 : 24;
  }
  const ir::Graph imported = onnx_io::import_model(path, options);
  // Gradient operators of ONNX Runtime's own are written in standard ones first.
  const auto graph = std::make_shared<const ir::Graph>(
      transforms::find_pass("lower_microsoft_operators").run(imported));
  const Arrays feeds = test::random_feeds(*graph);
  RunOptions run_options;
  run_options.data_folder = kGraphs;
  const RunResult result = run_in_threads({graph}, {feeds}, run_options);
  const test::Tensors want = test::run_graph(*graph, feeds);
  test::expect_close(result.ranks[0].outputs, want, 2e-5);
  run_options.compile.fuse = true;
  test::expect_close(run_in_threads({graph}, {feeds}, run_options).ranks[0].outputs, want, 2e-5);

  const MemoryPlan& plan = result.ranks[0].planned;
  EXPECT_GE(result.ranks[0].measured_peak, plan.live_peak * 9 / 10);  // kernels leave scratch over
  EXPECT_LE(plan.arena, plan.live_peak + plan.live_peak / 5) << "at " << plan.peak_node;
  EXPECT_LE(result.ranks[0].arena_touched, plan.arena + 4096);
}

INSTANTIATE_TEST_SUITE_P(Committed, ExecutorModels, testing::ValuesIn(committed_graphs()),
                         [](const auto& parameters) { return parameters.param; });

}  // namespace
}  // namespace autosp::executor

// Canonicalizing real training graphs: loss and gradients stay, and what hides the sequence goes.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "onnx/model.h"
#include "support/run_graph.h"
#include "transforms/canonicalize/index_grid.h"
#include "transforms/pipeline.h"

namespace autosp::transforms {
namespace {

using ir::Graph;

// Every committed graph; those with an open sequence at two lengths, one of them odd.
struct Model {
  std::string file;
  int64_t sequence;
};

void PrintTo(const Model& model, std::ostream* out) { *out << model.file << "@" << model.sequence; }

const std::filesystem::path kGraphs = std::filesystem::path(AUTOSP_SOURCE_DIR) / "models/graphs";

std::vector<Model> committed_models() {
  std::vector<Model> models;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(kGraphs)) {
    if (entry.path().extension() != ".onnx") continue;
    const bool open = !onnx_io::symbolic_dims(entry.path()).empty();
    const std::string file = std::filesystem::relative(entry.path(), kGraphs).string();
    models.push_back({file, open ? 61 : 0});
    if (open) models.push_back({file, 64});
  }
  std::ranges::sort(models, {}, [](const Model& m) { return std::pair(m.file, m.sequence); });
  return models;
}

Graph import(const Model& model) {
  onnx_io::ImportOptions options;
  for (const auto& dim : onnx_io::symbolic_dims(kGraphs / model.file)) {
    options.dims[dim.name] = dim.name.find("batch") != std::string::npos ? 2 : model.sequence;
  }
  return onnx_io::import_model(kGraphs / model.file, options);
}

class CanonicalizeModels : public testing::TestWithParam<Model> {};

TEST_P(CanonicalizeModels, KeepsLossAndGradients) {
  const Graph graph = import(GetParam());
  const Graph canonical = run_passes(graph);
  const test::Tensors feeds = test::random_feeds(graph);
  // The accumulators' flags become gradients, so those graphs are compared from there on.
  const Graph lowered = find_pass("lower_microsoft_operators").run(graph);
  test::expect_close(test::run_graph(canonical, feeds), test::run_graph(lowered, feeds), 2e-5);
}

TEST_P(CanonicalizeModels, LeavesNothingThatHidesTheSequence) {
  const Graph canonical = run_passes(import(GetParam()));
  for (const char* op : {"ReduceMean", "SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss",
                         "GatherND", "Identity", "Squeeze", "Unsqueeze", "Shape", "Range"}) {
    EXPECT_EQ(test::count_nodes(canonical, op), 0U) << op;
  }
  for (const ir::Node& node : canonical.nodes()) {
    EXPECT_EQ(node.domain, "") << canonical.describe(node);
    // What is left scatters by data, or by a table of positions that are no range.
    if (node.op == "ScatterND") {
      AffineAnalysis affine(canonical);
      const auto columns = affine.find_columns(node.input(1));
      ir::Shape rows = canonical.shape(node.input(1));
      rows.pop_back();
      EXPECT_FALSE(columns && find_index_grid(rows, *columns, canonical.shape(node.input(0))))
          << canonical.describe(node);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CanonicalizeModels, testing::ValuesIn(committed_models()));

}  // namespace
}  // namespace autosp::transforms

// Canonicalizing real training graphs: loss and gradients stay, and what hides the sequence goes.
#include <gtest/gtest.h>

#include <algorithm>

#include "ir/operator_traits.h"
#include "support/committed_models.h"
#include "support/run_graph.h"
#include "transforms/canonicalize/index_grid.h"
#include "transforms/pipeline.h"

namespace autosp::transforms {
namespace {

using ir::Graph;
using test::CommittedModel;

class CanonicalizeModels : public testing::TestWithParam<CommittedModel> {};

TEST_P(CanonicalizeModels, KeepsLossAndGradients) {
  const Graph graph = import_committed(GetParam());
  const Graph canonical = run_passes(graph);
  const test::Tensors feeds = test::random_feeds(graph);
  // The accumulators' flags become gradients, so those graphs are compared from there on.
  const Graph lowered = find_pass("lower_microsoft_operators").run(graph);
  test::expect_close(test::run_graph(canonical, feeds), test::run_graph(lowered, feeds), 2e-5);
}

TEST_P(CanonicalizeModels, LeavesNothingThatHidesTheSequence) {
  const Graph canonical = run_passes(import_committed(GetParam()));
  for (const char* op :
       {"ReduceMean", "SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss", "GatherND",
        "Identity", "Squeeze", "Unsqueeze", "Shape", "Range", "Dropout"}) {
    EXPECT_EQ(test::count_nodes(canonical, op), 0U) << op;
  }
  for (const ir::Node& node : canonical.nodes()) {
    EXPECT_TRUE(node.domain.empty() || ir::is_draw(node)) << canonical.describe(node);
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

// Logits lose their last position before they are computed, whoever exported the graph.
TEST_P(CanonicalizeModels, ShiftsNoLogits) {
  const std::string& file = GetParam().file;
  const bool predicts_next = file.starts_with("gpt2") || file.starts_with("llama") ||
                             file.starts_with("nano") || file.starts_with("matrix");
  if (!predicts_next) return;
  const int64_t vocabulary = file.starts_with("matrix") ? 50 : 112;
  const Graph canonical = run_passes(import_committed(GetParam()));
  for (const ir::Node& node : canonical.nodes()) {
    if (node.op != "Slice" && node.op != "Pad") continue;
    const ir::Shape& shape = canonical.shape(node.output(0));
    EXPECT_EQ(std::ranges::find(shape, vocabulary), shape.end()) << canonical.describe(node);
  }
}

INSTANTIATE_TEST_SUITE_P(All, CanonicalizeModels,
                         testing::ValuesIn(test::committed_models({61, 64})),
                         [](const auto& model) { return identifier_of(model.param); });

}  // namespace
}  // namespace autosp::transforms

// Fused attention on real graphs: no value over two sequences is left, the numbers stay, and what
// is almost attention is refused or equal all the same.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "ir/rewriter.h"
#include "shard/plan.h"
#include "support/attention_layers.h"
#include "support/committed_models.h"
#include "support/run_graph.h"
#include "transforms/canonicalize/constants.h"
#include "transforms/pipeline.h"

namespace autosp::transforms {
namespace {

using ir::Graph;
using ir::Node;
using test::CommittedModel;
using test::run_graph;

// Where values over two sequences remain, and why.
const std::map<std::string, std::string>& exceptions() {
  static const std::map<std::string, std::string> kExceptions = {
      {"adversarial/relative_position_bias.onnx",
       "the bias and its gradient are [heads, queries, keys]"},
      {"adversarial/state_space.onnx", "the decays between chunks are [heads, chunks, chunks]"},
      {"adversarial/state_space_of_padded_chunks.onnx", "likewise"},
      {"adversarial/token_mixer.onnx", "the mixer's weights are [sequence, sequence]"}};
  return kExceptions;
}

Graph fused(const Graph& graph, std::vector<AttentionRegion>* regions = nullptr) {
  return run_passes(graph,
                    {.fuse_attention = true, .context = {.roles = {}, .attention = regions}});
}

std::vector<std::string> values_over_two_sequences(const Graph& graph) {
  const shard::Roles roles = shard::detect_roles(graph);
  const shard::FactorAnalysis analysis(graph, roles.is_parameter);
  const shard::HomeClasses home = shard::find_home(analysis, roles);
  std::vector<std::string> names;
  for (ValueId value : shard::find_attention(analysis, home).two_home_values) {
    names.push_back(graph.name_of(value));
  }
  return names;
}

// The same by extents alone, for graphs in which no other dimension is as long as the sequence.
std::vector<std::string> values_with_two_extents_of(const Graph& graph, int64_t sequence) {
  std::vector<std::string> names;
  for (size_t v = 0; v < graph.values().size(); ++v) {
    if (std::ranges::count(graph.shape(ValueId(v)), sequence) >= 2)
      names.push_back(graph.name_of(ValueId(v)));
  }
  return names;
}

class FusedModels : public testing::TestWithParam<CommittedModel> {};

TEST_P(FusedModels, LeaveNoValueOverTwoSequences) {
  std::vector<AttentionRegion> regions;
  const Graph graph = fused(import_committed(GetParam()), &regions);
  const bool is_exception = exceptions().contains(GetParam().file);
  for (const AttentionRegion& region : regions)
    EXPECT_TRUE(region.fused || is_exception) << region.to_string();
  const auto left = values_over_two_sequences(graph);
  if (!GetParam().file.starts_with("adversarial/")) {
    const shard::DimTag tag = shard::detect_roles(graph).sequence.at(0);
    const int64_t sequence = graph.shape(tag.value)[static_cast<size_t>(tag.dim)];
    EXPECT_EQ(values_with_two_extents_of(graph, sequence), std::vector<std::string>());
  }
  if (is_exception) {
    EXPECT_FALSE(left.empty()) << "no exception any more: " << exceptions().at(GetParam().file);
  } else {
    EXPECT_EQ(left, std::vector<std::string>());
  }
}

TEST_P(FusedModels, GiveTheSameLossAndGradients) {
  const Graph imported = import_committed(GetParam());
  const Graph before = run_passes(imported);
  const Graph after = fused(imported);
  const test::Tensors feeds = test::random_feeds(before);
  const test::Tensors want = run_graph(before, feeds);
  const test::Tensors got = run_graph(after, feeds);
  test::expect_close(got, want, 1e-4);
  for (const ir::Output& output : before.outputs()) {
    if (output.name != "loss") continue;
    const double loss = want.at("loss").value_as_double(0);
    EXPECT_NEAR(got.at("loss").value_as_double(0), loss, 1e-5 * std::abs(loss));
  }
}

// Rows of padding that see no key at all are rows of attention too.
TEST_P(FusedModels, KeepRowsWithoutAKey) {
  const Graph imported = import_committed(GetParam());
  const Graph before = run_passes(imported);
  test::Tensors feeds = test::random_feeds(before);
  const auto mask = feeds.find("attention_mask");
  if (mask == feeds.end()) GTEST_SKIP() << "the model has no attention_mask";
  const ir::Type type = mask->second.type();
  ir::Tensor padded = ir::Tensor::filled(type, 1);
  const size_t row = static_cast<size_t>(type.shape.back()) * element_size(type.dtype);
  std::fill_n(padded.mutable_bytes(), row, std::byte{0});
  mask->second = padded;
  test::expect_close(run_graph(fused(imported), feeds), run_graph(before, feeds), 1e-4);
}

INSTANTIATE_TEST_SUITE_P(All, FusedModels, testing::ValuesIn(test::committed_models({37})),
                         [](const auto& model) { return identifier_of(model.param); });

// --- Mutations: one operator or one number of the attention is changed. Either the region is
// refused, or what replaces it still computes the mutant.

struct Mutation {
  size_t node = 0;
  std::string op;  // the new operator; empty: a constant operand is scaled by 1.01
  size_t operand = 0;
};

std::vector<Mutation> mutations_of(const Graph& graph) {
  static const std::map<std::string, std::vector<std::string>> kSwaps = {
      {"Add", {"Sub", "Mul"}}, {"Sub", {"Add"}},      {"Mul", {"Add", "Div"}},
      {"Div", {"Mul"}},        {"Less", {"Greater"}}, {"LessOrEqual", {"Less"}},
      {"And", {"Or"}},         {"Exp", {"Tanh"}},     {"ReduceSum", {"ReduceMax"}},
      {"Tanh", {"Sigmoid"}}};
  const shard::Roles roles = shard::detect_roles(graph);
  const shard::FactorAnalysis analysis(graph, roles.is_parameter);
  const auto sites = shard::find_attention(analysis, shard::find_home(analysis, roles));
  std::vector<Mutation> mutations;
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    if (!sites.touches[n]) continue;
    const Node& node = graph.nodes()[n];
    if (const auto swaps = kSwaps.find(node.op); swaps != kSwaps.end()) {
      for (const std::string& op : swaps->second) mutations.push_back({n, op});
    }
    for (size_t k = 0; k < node.inputs.size(); ++k) {
      if (!node.inputs[k] || !uniform_constant(graph, node.inputs[k])) continue;
      if (is_floating(graph.type(node.inputs[k]).dtype)) mutations.push_back({n, "", k});
    }
  }
  return mutations;
}

Graph mutated(const Graph& graph, const Mutation& mutation) {
  return rewrite_nodes(graph, [&](ir::Rewriter& rewriter, const Node& node) {
    if (&node != &graph.nodes()[mutation.node]) return false;
    std::vector<ValueId> operands = rewriter.mapped(node.inputs);
    Node changed = node;
    if (mutation.op.empty()) {
      const ir::Type& type = graph.type(node.inputs[mutation.operand]);
      const double number = *uniform_constant(graph, node.inputs[mutation.operand]);
      // Zero stays zero under any factor.
      operands[mutation.operand] =
          rewriter.build().constant(ir::Tensor::filled(type, number == 0 ? 0.01 : number * 1.01));
    } else {
      changed.op = mutation.op;
    }
    rewriter.copy(changed, operands);
    return true;
  });
}

// Returns how many mutants were refused.
int check_mutants(const Graph& canonical) {
  int refused = 0;
  const test::Tensors feeds = test::random_feeds(canonical, {.seed = 5});
  for (const Mutation& mutation : mutations_of(canonical)) {
    const Node& node = canonical.nodes()[mutation.node];
    SCOPED_TRACE(fmt::format("{} -> {}", canonical.describe(node),
                             mutation.op.empty() ? "another number" : mutation.op));
    const Graph mutant = mutated(canonical, mutation);
    const FusedAttention result = fuse_attention(mutant, shard::detect_roles(mutant));
    if (std::ranges::any_of(result.regions, [](const auto& region) { return !region.fused; })) {
      ++refused;
    }
    test::expect_close_or_nan(run_graph(result.graph, feeds), run_graph(mutant, feeds), 1e-5);
  }
  return refused;
}

TEST(FusedMutants, AreRefusedOrEqual) {
  using test::LayerMask;
  for (const LayerMask mask :
       {LayerMask::kNone, LayerMask::kCausal, LayerMask::kWindow, LayerMask::kBand,
        LayerMask::kLeftPadding, LayerMask::kSegments, LayerMask::kZeroDeadRows,
        LayerMask::kDistances, LayerMask::kGuarded}) {
    SCOPED_TRACE(static_cast<int>(mask));
    EXPECT_GE(check_mutants(run_passes(test::attention_layer({.softcap = 1.5F, .mask = mask}))), 8);
  }
}

TEST(FusedMutants, OfCommittedGraphsAreRefusedOrEqual) {
  for (const char* file : {"adversarial/fused_grouped_queries.onnx", "adversarial/alibi.onnx",
                           "adversarial/packed_documents.onnx"}) {
    SCOPED_TRACE(file);
    EXPECT_GE(check_mutants(run_passes(test::import_committed({.file = file}))), 3);
  }
}

}  // namespace
}  // namespace autosp::transforms

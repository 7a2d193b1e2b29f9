// A layer whose attention is one operator, forward and backward, sharded over KV heads, over
// query-head groups and over batches: equal to the whole, and exchanged as the decomposed one is.
#include <gtest/gtest.h>

#include "ir/builder.h"
#include "onnx/model.h"
#include "shard/plan.h"
#include "support/run_graph.h"
#include "transforms/spmd/emit_ranks.h"
#include "transforms/spmd/emulate.h"
#include "transforms/spmd/program.h"

namespace autosp::transforms {
namespace {

using ir::DataType;
using ir::Graph;
using ir::Shape;

constexpr int64_t kBatch = 2;
constexpr int64_t kSequence = 13;
constexpr int64_t kHidden = 10;
constexpr int64_t kWidth = 3;

// loss = sum(t * (attention(x) wo)), and the gradients of x, the weights, the bias and the sink.
class Layer {
 public:
  Layer(int64_t kv_heads, int64_t group) : heads_(kv_heads * group), kv_heads_(kv_heads) {}

  Graph build() && {
    const ValueId x = input("x", {kBatch, kSequence, kHidden});
    const ValueId t = input("t", {kBatch, kSequence, kHidden});
    const ValueId segments = graph_.add_input("segments", {DataType::kInt64, {kBatch, kSequence}});
    const ValueId wq = input("wq", {kHidden, heads_ * kWidth});
    const ValueId wk = input("wk", {kHidden, kv_heads_ * kWidth});
    const ValueId wv = input("wv", {kHidden, kv_heads_ * kWidth});
    const ValueId wo = input("wo", {heads_ * kWidth, kHidden});
    const ValueId bias = input("bias", {1, heads_, 1, kSequence});
    const ValueId sink = input("sink", {heads_});
    const std::vector<ValueId> qkv = {heads(x, wq), heads(x, wk), heads(x, wv)};
    const std::vector<ValueId> masks = {bias,     causal_end(0), causal_end(1), {},
                                        segments, segments,      sink};
    const Shape rows = {kBatch, heads_, kSequence};
    const Shape wide = {kBatch, heads_, kSequence, kWidth};
    const auto forward = fused("Attention", qkv, masks, {wide, rows, rows});
    loss(t, forward[0], wo);

    const ValueId output_gradient = split(build_.matmul(t, build_.transpose(wo, {1, 0})));
    std::vector<ValueId> operands = {output_gradient};
    operands.insert(operands.end(), qkv.begin(), qkv.end());
    operands.insert(operands.end(), forward.begin(), forward.end());
    const Shape narrow = {kBatch, kv_heads_, kSequence, kWidth};
    const auto gradients = fused("AttentionGrad", operands, masks,
                                 {wide, narrow, narrow, graph_.shape(bias), graph_.shape(sink)});
    weight_gradient("wq_grad", x, gradients[0]);
    weight_gradient("wk_grad", x, gradients[1]);
    weight_gradient("wv_grad", x, gradients[2]);
    graph_.add_output("bias_grad", gradients[3]);
    graph_.add_output("sink_grad", gradients[4]);
    return std::move(graph_);
  }

 private:
  ValueId input(const std::string& name, Shape shape) {
    return graph_.add_input(name, {DataType::kFloat32, std::move(shape)});
  }
  // [batch, sequence, heads * width] -> [batch, heads, sequence, width]
  ValueId split(ValueId x) {
    const Shape& shape = graph_.shape(x);
    const ValueId parts = build_.reshape(x, {shape[0], shape[1], shape[2] / kWidth, kWidth});
    return build_.transpose(parts, {0, 2, 1, 3});
  }
  ValueId heads(ValueId x, ValueId w) { return split(build_.matmul(x, w)); }
  ValueId join(ValueId x) {
    const Shape shape = graph_.shape(x);
    return build_.reshape(build_.transpose(x, {0, 2, 1, 3}),
                          {shape[0], shape[2], shape[1] * shape[3]});
  }
  // Keys [begin, end) of every query: a causal window of six.
  ValueId causal_end(int64_t offset) {
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < kSequence; ++i) {
      positions.push_back(offset == 1 ? i + 1 : std::max<int64_t>(0, i - 5));
    }
    return build_.constant(ir::Tensor::int64s(positions).reshaped({1, kSequence}));
  }
  std::vector<ValueId> fused(const std::string& op, std::vector<ValueId> operands,
                             const std::vector<ValueId>& masks, const std::vector<Shape>& shapes) {
    operands.insert(operands.end(), masks.begin(), masks.end());
    std::vector<ir::Type> types;
    for (const Shape& shape : shapes) types.push_back({DataType::kFloat32, shape});
    return build_.node(op, std::move(operands), types, {{"scale", 0.6F}},
                       std::string(ir::kAutospDomain));
  }
  void loss(ValueId t, ValueId output, ValueId wo) {
    const ValueId y = build_.matmul(join(output), wo);
    graph_.add_output("loss", build_.reduce_sum(build_.binary("Mul", y, t), {0, 1, 2}, false));
  }
  void weight_gradient(const std::string& name, ValueId x, ValueId gradient) {
    const ValueId g = join(gradient);
    const ValueId rows = build_.reshape(x, {kBatch * kSequence, kHidden});
    const ValueId columns = build_.reshape(g, {kBatch * kSequence, graph_.shape(g)[2]});
    graph_.add_output(name, build_.matmul(build_.transpose(rows, {1, 0}), columns));
  }

  Graph graph_;
  ir::Builder build_{graph_};
  int64_t heads_;
  int64_t kv_heads_;
};

shard::Roles roles_of(const Graph& graph, bool tagged) {
  shard::RoleOptions options{.loss = "loss"};
  for (const char* name : {"wq", "wk", "wv", "bias", "sink"}) {
    options.gradients[name] = std::string(name) + "_grad";
  }
  if (tagged) {
    for (const char* name : {"x:1", "t:1", "segments:1"}) options.sequence.emplace_back(name);
    for (const char* name : {"x:0", "t:0", "segments:0"}) options.batch.emplace_back(name);
  }
  return shard::detect_roles(graph, options);
}

struct Case {
  int64_t kv_heads;
  int64_t group;
  shard::PlanOptions options;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << fmt::format("{} KV heads of {}, sp {} dp {}", c.kv_heads, c.group, c.options.sp,
                      c.options.dp);
}

class FusedAttention : public testing::TestWithParam<Case> {};

TEST_P(FusedAttention, ShardedEqualsWhole) {
  const Case& c = GetParam();
  const Graph graph = Layer(c.kv_heads, c.group).build();
  for (const ir::Node& node : graph.nodes()) {  // what inference says is what was built
    if (node.domain.empty()) continue;
    const auto types = onnx_io::infer_types(graph, node);
    for (size_t k = 0; k < types.size(); ++k) EXPECT_EQ(types[k], graph.type(node.outputs[k]));
  }
  const shard::Plan plan = shard::make_plan(graph, roles_of(graph, true), c.options);
  EXPECT_TRUE(plan.gathered.empty());
  EXPECT_EQ(plan.kv_heads, c.kv_heads);
  EXPECT_EQ(plan.head_groups, c.group);
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    if (graph.nodes()[n].domain.empty()) continue;
    for (size_t axis = 0; axis < plan.axes.size(); ++axis) {
      const bool is_sequence = plan.mesh.axes()[axis].name != "dp";
      EXPECT_EQ(plan.axes[axis].labels[n] == shard::Label::kAlternative, is_sequence);
    }
  }
  const test::Tensors feeds = test::random_feeds(graph, {.num_tokens = 2});
  test::expect_close(test::run_graph(emulate(build_program(plan)), feeds),
                     test::run_graph(graph, feeds));
}

INSTANTIATE_TEST_SUITE_P(Meshes, FusedAttention,
                         testing::Values(Case{4, 1, {.sp = 2}}, Case{3, 2, {.sp = 3}},
                                         Case{4, 2, {.sp = 4}}, Case{2, 2, {.sp = 4}},
                                         Case{1, 4, {.sp = 4}}, Case{1, 3, {.sp = 2}},
                                         Case{2, 3, {.sp = 4, .sp_mesh = {{"u", 2}, {"g", 2}}}},
                                         Case{4, 3, {.sp = 3, .sp_mesh = {{"g", 3}}}},
                                         Case{2, 2, {.sp = 2, .dp = 2}}, Case{5, 1, {.sp = 3}}));

// Query positions: alone, beside heads and batches, beyond the heads.
INSTANTIATE_TEST_SUITE_P(
    MeshesWithQueries, FusedAttention,
    testing::Values(Case{4, 2, {.sp = 5}}, Case{4, 2, {.sp = 7, .dp = 2}}, Case{2, 2, {.sp = 8}},
                    Case{1, 1, {.sp = 3}}, Case{1, 3, {.sp = 6}}, Case{3, 1, {.sp = 12}},
                    Case{2, 3, {.sp = 12, .sp_mesh = {{"r", 2}, {"g", 3}, {"u", 2}}}},
                    Case{4, 1, {.sp = 4, .dp = 2, .sp_mesh = {{"r", 2}, {"u", 2}}}}));

// Each of q, k, v, o once in each direction; the statistics stay where they are.
TEST(FusedAttentionTraffic, IsThatOfUlysses) {
  const Graph graph = Layer(4, 2).build();
  const shard::Plan plan = shard::make_plan(graph, roles_of(graph, true), {.sp = 4});
  int exchanges = 0;
  for (const auto& record : list_collectives(build_program(plan))) {
    if (record.kind == StepKind::kAllToAll) ++exchanges;
  }
  EXPECT_EQ(exchanges, 8);
}

// K and V once, each way: gathered for both passes, their gradients scattered.
TEST(FusedAttentionTraffic, OverQueriesIsThatOfKeysAndValues) {
  const Graph graph = Layer(4, 2).build();
  const shard::Plan plan = shard::make_plan(graph, roles_of(graph, true), {.sp = 5});
  EXPECT_EQ(plan.mesh.to_string(), "r 5");
  std::map<StepKind, std::vector<int64_t>> sent;
  for (const auto& record : list_collectives(build_program(plan))) {
    if (record.purpose == Purpose::kReshard) sent[record.kind].push_back(record.bytes_per_rank);
  }
  const int64_t tokens = kBatch * 4 * kWidth * 4;                     // bytes of one position of K
  const std::vector<int64_t> gathered(2, 12 * tokens);                // the largest shard, to four
  const std::vector<int64_t> scattered(2, (kSequence - 2) * tokens);  // all but the smallest shard
  EXPECT_EQ(sent[StepKind::kAllGather], gathered);
  EXPECT_EQ(sent[StepKind::kReduceScatter], scattered);
  EXPECT_EQ(sent.size(), 2U);
}

TEST(FusedAttentionTraffic, TheSequenceIsFoundWithoutTags) {
  const Graph graph = Layer(4, 2).build();
  const shard::FactorAnalysis analysis(graph, std::vector<bool>(graph.values().size(), false));
  shard::Roles roles;
  const shard::HomeClasses home = shard::find_home(analysis, roles);
  ASSERT_EQ(home.sequence.size(), 1U);
  const auto x = analysis.dims(*graph.find("x"));
  EXPECT_TRUE(home.sequence.contains(analysis.class_of(x[1][0])));
}

}  // namespace
}  // namespace autosp::transforms

// The planner on real graphs: what it finds, what it moves, and that its own account is right.
#include "shard/plan.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "base/error.h"
#include "ir/builder.h"
#include "llama_step.h"
#include "onnx/model.h"
#include "transforms/pipeline.h"
#include "transforms/spmd/emit_ranks.h"

namespace autosp {
namespace {

struct Planned {
  ir::Graph graph;
  shard::Plan plan;
};

std::unique_ptr<Planned> plan(const std::string& file, const shard::PlanOptions& options,
                              std::map<std::string, int64_t> dims = {},
                              const shard::RoleOptions& roles = {}) {
  auto planned = std::make_unique<Planned>();
  const auto path = std::filesystem::path(AUTOSP_SOURCE_DIR) / "models/graphs" / file;
  planned->graph = transforms::run_passes(onnx_io::import_model(path, {.dims = std::move(dims)}));
  planned->plan =
      shard::make_plan(planned->graph, shard::detect_roles(planned->graph, roles), options);
  return planned;
}

// The committed models: batch 3, sequence 40, head dimension 12, 2 layers.
constexpr int64_t kBatch = 3;
constexpr int64_t kSequence = 40;
constexpr int64_t kHeadDim = 12;
constexpr int64_t kLayers = 2;

struct Traffic {
  int64_t count = 0;
  int64_t bytes = 0;
};

// What is exchanged inside the layers: neither gradients nor loss terms.
Traffic layer_traffic(const shard::Plan& plan, transforms::StepKind kind) {
  Traffic traffic;
  for (const auto& record : transforms::list_collectives(transforms::build_program(plan))) {
    if (record.purpose != transforms::Purpose::kReshard || record.kind != kind) continue;
    // One number per token (losses of a shifted sequence at moved cut points) is no layer traffic.
    const ValueId value = *plan.graph().find(record.value);
    if (plan.graph().type(value).num_elements() < kBatch * kSequence * kHeadDim) continue;
    ++traffic.count;
    traffic.bytes += record.bytes_per_rank;
  }
  return traffic;
}

// Bytes a rank sends in hand-written Ulysses, forward and backward: q and o have `heads` heads, k
// and v have `kv_heads`, each exchanged once in each direction.
int64_t ulysses_bytes(int64_t ranks, int64_t heads, int64_t kv_heads) {
  const int64_t shard_tokens = kBatch * kSequence / ranks;
  return kLayers * 2 * shard_tokens * kHeadDim * 4 * (2 * heads + 2 * kv_heads) * (ranks - 1) /
         ranks;
}

struct LayerCase {
  std::string file;
  int64_t kv_heads;
  int64_t exchanges_per_layer;  // forward and backward
};
void PrintTo(const LayerCase& value, std::ostream* out) { *out << value.file; }

class LayerTraffic : public testing::TestWithParam<LayerCase> {};

TEST_P(LayerTraffic, IsThatOfUlyssesWithKeysExchangedBeforeTheyAreRepeated) {
  for (int64_t sp : {2, 4}) {
    const auto planned = plan(GetParam().file, {.sp = sp},
                              GetParam().file.find("static") == std::string::npos
                                  ? std::map<std::string, int64_t>{{"seq", kSequence}}
                                  : std::map<std::string, int64_t>{});
    const Traffic traffic = layer_traffic(planned->plan, transforms::StepKind::kAllToAll);
    EXPECT_EQ(traffic.count, kLayers * GetParam().exchanges_per_layer) << "sp " << sp;
    EXPECT_EQ(traffic.bytes, ulysses_bytes(sp, 8, GetParam().kv_heads)) << "sp " << sp;
    EXPECT_EQ(layer_traffic(planned->plan, transforms::StepKind::kAllReduce).count, 0)
        << "sp " << sp;
    EXPECT_EQ(layer_traffic(planned->plan, transforms::StepKind::kAllGather).count, 0)
        << "sp " << sp;
    EXPECT_EQ(layer_traffic(planned->plan, transforms::StepKind::kReduceScatter).count, 0)
        << "sp " << sp;
    EXPECT_TRUE(planned->plan.gathered.empty());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, LayerTraffic,
    testing::Values(LayerCase{"gpt2_static.onnx", 8, 4}, LayerCase{"gpt2.onnx", 8, 4},
                    LayerCase{"llama_static.onnx", 4, 8}, LayerCase{"llama.onnx", 4, 8},
                    LayerCase{"bert_static.onnx", 8, 8}, LayerCase{"bert.onnx", 8, 8},
                    LayerCase{"nano_static.onnx", 8, 4}, LayerCase{"nano.onnx", 8, 4}));

// K and V, and nothing else, are gathered over r, each once and before they are repeated; their
// gradients, summed over the query heads of a KV head, are scattered. Queries and scores stay.
class QueryAxisTraffic : public testing::TestWithParam<LayerCase> {};

TEST_P(QueryAxisTraffic, IsThatOfKeysAndValues) {
  for (int64_t sp : {2, 5, 8}) {
    SCOPED_TRACE(fmt::format("sp {}", sp));
    const auto planned = plan(GetParam().file, {.sp = sp, .sp_mesh = {{"r", sp}}},
                              GetParam().file.find("static") == std::string::npos
                                  ? std::map<std::string, int64_t>{{"seq", kSequence}}
                                  : std::map<std::string, int64_t>{});
    EXPECT_EQ(planned->plan.mesh.to_string(), fmt::format("r {}", sp));
    EXPECT_TRUE(planned->plan.gathered.empty());
    const int64_t bytes =
        kLayers * 2 * kBatch * (kSequence / sp) * GetParam().kv_heads * kHeadDim * 4 * (sp - 1);
    for (auto kind : {transforms::StepKind::kAllGather, transforms::StepKind::kReduceScatter}) {
      const Traffic traffic = layer_traffic(planned->plan, kind);
      EXPECT_EQ(traffic.bytes, bytes) << transforms::name_of(kind);
      EXPECT_EQ(traffic.count, kLayers * GetParam().exchanges_per_layer)
          << transforms::name_of(kind);
    }
    EXPECT_EQ(layer_traffic(planned->plan, transforms::StepKind::kAllToAll).count, 0);
    EXPECT_EQ(layer_traffic(planned->plan, transforms::StepKind::kAllReduce).count, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, QueryAxisTraffic,
    testing::Values(LayerCase{"gpt2_static.onnx", 8, 2}, LayerCase{"gpt2.onnx", 8, 2},
                    LayerCase{"llama_static.onnx", 4, 2}, LayerCase{"llama.onnx", 4, 2},
                    LayerCase{"bert_static.onnx", 8, 2}, LayerCase{"bert.onnx", 8, 2},
                    LayerCase{"nano_static.onnx", 8, 2}, LayerCase{"nano.onnx", 8, 2}));

class CutAccount : public testing::TestWithParam<std::string> {};

TEST_P(CutAccount, EqualsBytesAndCollectivesAndPenalties) {
  for (const shard::PlanOptions& options :
       {shard::PlanOptions{.sp = 2}, shard::PlanOptions{.sp = 3}, shard::PlanOptions{.sp = 8},
        shard::PlanOptions{.sp = 4, .dp = 2}, shard::PlanOptions{.sp = 5, .sp_mesh = {{"r", 5}}},
        shard::PlanOptions{.sp = 7, .sp_mesh = {{"r", 7}}}, shard::PlanOptions{.sp = 16},
        shard::PlanOptions{.sp = 4, .dp = 2, .sp_mesh = {{"r", 2}, {"u", 2}}}}) {
    const auto planned = plan(GetParam(), options);
    for (size_t axis = 0; axis < planned->plan.axes.size(); ++axis) {
      const shard::AxisPlan& plan = planned->plan.axes[axis];
      const shard::Traffic traffic =
          shard::planned_traffic(*planned->plan.analysis, planned->plan.problems[axis], plan);
      const int64_t account = traffic.bytes +
                              traffic.collectives * planned->plan.problems[axis].collective_price +
                              plan.penalty_bytes;
      // Penalties are rounded up node by node.
      EXPECT_NEAR(static_cast<double>(plan.cut_bytes), static_cast<double>(account), 64)
          << GetParam() << " axis " << axis;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CutAccount,
                         testing::Values("gpt2_static.onnx", "llama_static.onnx",
                                         "bert_static.onnx", "nano_static.onnx"));

TEST(Plan, FindsKvHeadsAndGroups) {
  const auto planned = plan("llama_static.onnx", {.sp = 8});
  EXPECT_EQ(planned->plan.kv_heads, 4);
  EXPECT_EQ(planned->plan.head_groups, 2);
  EXPECT_EQ(planned->plan.sequence_extent, kSequence);
  EXPECT_EQ(planned->plan.mesh.to_string(), "g 2 x u 4");
}

TEST(Plan, KeysAndValuesAreGatheredBeforeTheyAreRepeated) {
  const auto planned = plan("llama_static.onnx", {.sp = 8});
  for (const auto& record :
       transforms::list_collectives(transforms::build_program(planned->plan))) {
    if (record.kind != transforms::StepKind::kAllGather ||
        record.purpose != transforms::Purpose::kReshard)
      continue;
    // No more than a rank's share of K: 4 heads over 4 ranks, its 20 tokens of half the sequence.
    EXPECT_LE(record.bytes_per_rank, kBatch * 1 * (kSequence / 2) * kHeadDim * 4) << record.value;
  }
}

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Plan, MoreRanksThanTokensIsRefused) {
  const std::string message = message_of([] { plan("nano.onnx", {.sp = 8}, {{"seq", 5}}); });
  EXPECT_NE(message.find("--sp 8 is more ranks than 'input_ids' has tokens"), std::string::npos)
      << message;
  EXPECT_NE(message.find("help:"), std::string::npos) << message;
}

TEST(Plan, MoreReplicasThanSamplesIsRefused) {
  const std::string message = message_of([] { plan("nano_static.onnx", {.sp = 2, .dp = 4}); });
  EXPECT_NE(message.find("--dp 4"), std::string::npos) << message;
}

TEST(Plan, AMeshOfTheWrongSizeIsRefused) {
  const std::string message = message_of([] {
    plan("nano_static.onnx", {.sp = 4, .sp_mesh = {{"u", 3}}});
  });
  EXPECT_NE(message.find("--sp asks for 4"), std::string::npos) << message;
}

TEST(Plan, StrictRefusesWhatMustBeGathered) {
  const std::string file = "adversarial/linear_attention.onnx";
  const std::string message = message_of([&] { plan(file, {.sp = 4, .strict = true}); });
  EXPECT_NE(message.find("would be gathered"), std::string::npos) << message;
  EXPECT_FALSE(plan(file, {.sp = 4})->plan.gathered.empty());
}

// A state space model before attention: chunks of the sequence, a convolution over it and shifted
// labels cut windows out of blocks; the decays between chunks have no softmax, and more heads than
// attention has KV heads; positions in a chunk are no heads.
TEST(Plan, StatesOfChunksAreSplitByHeadsAndWindowsByBlocks) {
  for (const bool is_padded : {false, true}) {
    const char* file = is_padded ? "adversarial/state_space_of_padded_chunks.onnx"
                                 : "adversarial/state_space.onnx";
    const auto path = std::filesystem::path(AUTOSP_SOURCE_DIR) / "models/graphs" / file;
    const ir::Graph model = onnx_io::import_model(path);
    for (const bool fused : {false, true}) {
      const ir::Graph graph = transforms::run_passes(model, {.fuse_attention = fused});
      const auto made = [&](int64_t sp) {
        return shard::make_plan(graph, shard::detect_roles(graph), {.sp = sp});
      };
      SCOPED_TRACE(fmt::format("{} fused {}", file, fused));
      const shard::Plan two = made(2);
      EXPECT_EQ(two.mesh.to_string(), "u 2");
      EXPECT_TRUE(two.gathered.empty());
      EXPECT_EQ(made(4).mesh.to_string(), is_padded ? "u 4" : "g 2 x u 2");
      EXPECT_EQ(made(6).mesh.to_string(), "r 3 x u 2");
    }
  }
}

TEST(Plan, MoreRanksThanHeadsSplitTheQueriesToo) {
  EXPECT_EQ(plan("gpt2_static.onnx", {.sp = 16, .strict = true})->plan.mesh.to_string(),
            "r 2 x u 8");
  EXPECT_EQ(plan("llama_static.onnx", {.sp = 16, .strict = true})->plan.mesh.to_string(),
            "r 2 x g 2 x u 4");
  EXPECT_EQ(plan("llama_static.onnx", {.sp = 5, .strict = true})->plan.mesh.to_string(), "r 5");
  EXPECT_EQ(plan("llama_static.onnx", {.sp = 7, .dp = 3, .strict = true})->plan.mesh.to_string(),
            "dp 3 x r 7");
  EXPECT_EQ(plan("adversarial/token_mixer.onnx", {.sp = 6, .strict = true})->plan.mesh.to_string(),
            "r 3 x u 2");
}

TEST(Plan, AMeshThatLeavesRanksWithoutHeadsIsRefused) {
  const std::string message = message_of([] {
    plan("llama_static.onnx", {.sp = 8, .sp_mesh = {{"u", 8}}});
  });
  EXPECT_NE(message.find("u=8 leaves ranks without work: attention has 4 KV heads"),
            std::string::npos)
      << message;
  EXPECT_NE(message.find("--sp-mesh r=1,g=2,u=4"), std::string::npos) << message;
}

TEST(Plan, AMillionTokensStayWithinTheArithmetic) {
  const bench::LlamaSizes sizes{.layers = 1, .batch = 2, .sequence = 1 << 20};
  const ir::Graph graph = transforms::run_passes(bench::llama_step(sizes));
  const shard::Plan made = shard::make_plan(graph, shard::detect_roles(graph), {.sp = 8});
  int64_t exchanges = 0;
  int64_t bytes = 0;
  for (const auto& record : transforms::list_collectives(transforms::build_program(made))) {
    if (record.kind == transforms::StepKind::kAllToAll) ++exchanges;
    if (record.kind == transforms::StepKind::kAllToAll) bytes += record.bytes_per_rank;
    EXPECT_GT(record.bytes_per_rank, 0) << record.value;
  }
  EXPECT_EQ(exchanges, 8);
  const int64_t tokens = sizes.batch * sizes.sequence / 8;
  EXPECT_EQ(bytes, 2 * tokens * 128 * 4 * (2 * 32 + 2 * 8) * 7 / 8);
  for (const shard::AxisPlan& axis : made.axes) EXPECT_GT(axis.cut_bytes, bytes);
}

// x [4] -> sum over x of an integer, halved: the halves of the parts are not the half of the sum.
TEST(Rules, IntegerDivisionAndRoundedCountsAreNotLinear) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ValueId count = graph.add_input("count", {ir::DataType::kInt64, {}});
  const ValueId real = graph.add_input("real", {ir::DataType::kFloat32, {}});
  build.binary("Div", count, build.scalar(ir::DataType::kInt64, 2));
  build.binary("Div", real, build.scalar(ir::DataType::kFloat32, 2));
  build.cast(count, ir::DataType::kBFloat16);
  build.cast(real, ir::DataType::kFloat16);
  build.cast(count, ir::DataType::kFloat32);
  std::vector<bool> linear;
  for (const ir::Node& node : graph.nodes())
    linear.push_back(!shard::rule_of(graph, node)->linear.empty());
  EXPECT_EQ(linear, (std::vector<bool>{false, true, false, false, true}));
}

// A frozen embedding has "token" in its name and no gradient; its hidden dimension is no sequence.
TEST(Roles, FrozenWeightsAreNoData) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ValueId ids = graph.add_input("input_ids", {ir::DataType::kInt64, {2, 8}});
  const ValueId frozen = graph.add_input("embed_tokens.weight", {ir::DataType::kFloat32, {8, 16}});
  const ValueId trained = graph.add_input("w", {ir::DataType::kFloat32, {16}});
  const ValueId x = build.gather(frozen, ids, 0);
  graph.add_output("loss", build.reduce_sum(build.binary("Mul", x, trained), {0, 1, 2}, false));
  graph.add_output("w.grad", build.reduce_sum(x, {0, 1}, false));
  const shard::Roles roles = shard::detect_roles(graph);
  EXPECT_TRUE(roles.is_parameter[frozen.index()]);
  EXPECT_EQ(roles.sequence, (std::vector<shard::DimTag>{{ids, 1}}));
  EXPECT_EQ(roles.batch, (std::vector<shard::DimTag>{{ids, 0}}));
}

// Features of speech or of a time series have no telling name, but the shape of the labels.
TEST(Roles, FloatsThatLieBesideTokensAreData) {
  ir::Graph graph;
  ir::Builder build(graph);
  const auto floats = [&](const std::string& name, ir::Shape shape) {
    return graph.add_input(name, {ir::DataType::kFloat32, std::move(shape)});
  };
  const ValueId x = floats("x", {2, 8, 4});
  const ValueId labels = graph.add_input("labels", {ir::DataType::kInt64, {2, 8}});
  const ValueId other = floats("table", {2, 9, 4});
  const ValueId frozen = floats("encoder.positions", {2, 8, 4});
  const ValueId w = floats("w", {4});
  ValueId loss = build.binary("Mul", build.binary("Add", x, frozen), w);
  loss = build.binary("Add", build.reduce_sum(loss, {0, 1, 2}, false),
                      build.reduce_sum(other, {0, 1, 2}, false));
  const ValueId counted = build.cast(labels, ir::DataType::kFloat32);
  graph.add_output("loss", build.binary("Add", loss, build.reduce_sum(counted, {0, 1}, false)));
  graph.add_output("w.grad", build.reduce_sum(x, {0, 1}, false));
  const shard::Roles roles = shard::detect_roles(graph);
  EXPECT_FALSE(roles.is_parameter[x.index()]);
  EXPECT_TRUE(roles.is_parameter[other.index()]);
  EXPECT_TRUE(roles.is_parameter[frozen.index()]);
  EXPECT_EQ(roles.sequence, (std::vector<shard::DimTag>{{x, 1}, {labels, 1}}));
  EXPECT_EQ(roles.batch, (std::vector<shard::DimTag>{{x, 0}, {labels, 0}}));
}

// Symbolic dimensions name the encoder's sequence; the decoder's inputs are known by their names.
TEST(Roles, ADecodersSequenceIsFoundToo) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ValueId ids = graph.add_input("input_ids", {ir::DataType::kInt64, {2, 8}});
  const ValueId decoder = graph.add_input("decoder_input_ids", {ir::DataType::kInt64, {2, 6}});
  const ValueId w = graph.add_input("w", {ir::DataType::kFloat32, {16, 4}});
  const auto embedded = [&](ValueId tokens) {
    return build.reduce_sum(build.gather(w, tokens, 0), {0, 1, 2}, false);
  };
  graph.add_output("loss", build.binary("Add", embedded(ids), embedded(decoder)));
  graph.add_output("w.grad", build.identity(w));
  const shard::Roles roles = shard::detect_roles(
      graph, {.named_dims = {{"seq", "input_ids", 1}, {"target", "decoder_input_ids", 1}}});
  EXPECT_EQ(roles.sequence, (std::vector<shard::DimTag>{{ids, 1}, {decoder, 1}}));
}

// Two encoders, the second one's inputs called by no name that says what they are.
TEST(Roles, ASecondTowersBatchIsFoundToo) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ir::DataType kInt = ir::DataType::kInt64;
  const ValueId a = graph.add_input("a", {kInt, {3, 8}});
  const ValueId b = graph.add_input("b", {kInt, {3, 6}});
  const ValueId c = graph.add_input("c", {kInt, {3, 5}});
  const ValueId table = graph.add_input("table", {kInt, {8, 3}});
  const ValueId w = graph.add_input("w", {ir::DataType::kFloat32, {16, 4}});
  ValueId loss = build.reduce_sum(w, {0, 1}, false);
  for (const ValueId tokens : {a, b, c, table}) {
    loss =
        build.binary("Add", loss, build.reduce_sum(build.gather(w, tokens, 0), {0, 1, 2}, false));
  }
  graph.add_output("loss", loss);
  graph.add_output("w.grad", build.identity(w));
  const shard::RoleOptions by_extent{.named_dims = {{"seq", "a", 1}, {"target", "b", 1}}};
  const shard::Roles roles = shard::detect_roles(graph, by_extent);
  EXPECT_EQ(roles.sequence, (std::vector<shard::DimTag>{{a, 1}, {b, 1}}));
  EXPECT_EQ(roles.batch, (std::vector<shard::DimTag>{{a, 0}, {b, 0}, {c, 0}}));
  const shard::RoleOptions by_name{
      .named_dims = {{"batch", "a", 0}, {"seq", "a", 1}, {"batch", "c", 0}, {"rows", "b", 0}}};
  EXPECT_EQ(shard::detect_roles(graph, by_name).batch,
            (std::vector<shard::DimTag>{{a, 0}, {c, 0}}));
}

// Their names are those of inputs per token, their shapes are not.
TEST(Roles, BroadcastMasksAndNumbersPerSampleAreNoSequence) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ir::DataType kFloat = ir::DataType::kFloat32;
  const ValueId ids = graph.add_input("input_ids", {ir::DataType::kInt64, {2, 8}});
  const ValueId mask = graph.add_input("attention_mask", {ir::DataType::kInt64, {2, 1, 8}});
  const ValueId classes = graph.add_input("labels", {kFloat, {2, 3}});
  const ValueId targets = graph.add_input("targets", {kFloat, {2, 8}});
  const ValueId w = graph.add_input("w", {kFloat, {16}});
  const auto sum = [&](ValueId x, const std::vector<int64_t>& axes) {
    return build.reduce_sum(build.cast(x, kFloat), axes, false);
  };
  ValueId loss = sum(build.gather(w, ids, 0), {0, 1});
  loss = build.binary("Add", loss, sum(mask, {0, 1, 2}));
  loss = build.binary("Add", loss, sum(classes, {0, 1}));
  graph.add_output("loss", build.binary("Add", loss, sum(targets, {0, 1})));
  graph.add_output("w.grad", build.identity(w));
  EXPECT_EQ(shard::detect_roles(graph).sequence,
            (std::vector<shard::DimTag>{{ids, 1}, {targets, 1}}));
}

TEST(Roles, AnIntegerPerSampleIsNoSequence) {
  for (const char* name : {"frequency", "labels"}) {
    SCOPED_TRACE(name);
    ir::Graph graph;
    ir::Builder build(graph);
    const ValueId steps = graph.add_input("steps", {ir::DataType::kInt64, {2, 8}});
    const ValueId number = graph.add_input(name, {ir::DataType::kInt64, {2, 1}});
    const ValueId w = graph.add_input("w", {ir::DataType::kFloat32, {16}});
    const ValueId taken =
        build.binary("Add", build.gather(w, steps, 0), build.gather(w, number, 0));
    graph.add_output("loss", build.reduce_sum(taken, {0, 1}, false));
    graph.add_output("w.grad", build.identity(w));
    EXPECT_EQ(shard::detect_roles(graph).sequence, (std::vector<shard::DimTag>{{steps, 1}}));
  }
}

// Positions that a strided convolution makes of audio frames, and latents, beside a decoder's
// tokens. Attention over channels does not make those a sequence.
TEST(Home, PositionsThatNoInputHasAreASequenceWhereTheyAttendToEachOther) {
  ir::Graph graph;
  ir::Builder build(graph);
  const auto floats = [](ir::Shape shape) {
    return ir::Type{ir::DataType::kFloat32, std::move(shape)};
  };
  const ValueId frames = graph.add_input("input_features", floats({2, 4, 24}));
  const ValueId ids = graph.add_input("decoder_input_ids", {ir::DataType::kInt64, {2, 7}});
  const ValueId filter = graph.add_input("filter", floats({6, 4, 2}));
  const ValueId latents = graph.add_input("latents", floats({5, 6}));
  const ValueId embedding = graph.add_input("embedding", floats({9, 6}));
  const auto attend = [&](ValueId x) {  // [batch, positions, 6] to itself
    const ValueId scores =
        build.matmul(build.unary("Tanh", x), build.transpose(build.unary("Exp", x), {0, 2, 1}));
    return build.matmul(build.softmax("Softmax", scores, -1), x);
  };
  const ValueId convolved = build.node("Conv", {frames, filter}, floats({2, 6, 12}),
                                       {{"strides", std::vector<int64_t>{2}}});
  const ValueId encoded = attend(build.transpose(convolved, {0, 2, 1}));
  const ValueId compressed = attend(build.expand(build.unsqueeze(latents, {0}), {2, 5, 6}));
  const ValueId tokens = build.gather(embedding, ids, 0);
  const ValueId channels = build.matmul(attend(build.transpose(tokens, {0, 2, 1})), tokens);
  ValueId loss = build.reduce_sum(encoded, {0, 1, 2}, false);
  for (const ValueId x : {compressed, channels}) {
    loss = build.binary("Add", loss, build.reduce_sum(x, {0, 1, 2}, false));
  }
  graph.add_output("loss", loss);
  for (const ValueId w : {filter, latents, embedding}) {
    graph.add_output(graph.name_of(w) + ".grad", build.identity(w));
  }
  const shard::Roles roles = shard::detect_roles(graph);
  EXPECT_EQ(roles.sequence, (std::vector<shard::DimTag>{{frames, 2}, {ids, 1}}));
  const shard::FactorAnalysis analysis(graph, roles.is_parameter);
  const shard::HomeClasses home = shard::find_home(analysis, roles);
  const auto is_sequence = [&](ValueId value, size_t axis) {
    return home.sequence.contains(analysis.class_of(analysis.dims(value)[axis].at(0)));
  };
  EXPECT_TRUE(is_sequence(encoded, 1));
  EXPECT_FALSE(is_sequence(encoded, 2));
  EXPECT_TRUE(is_sequence(compressed, 1));
  EXPECT_TRUE(is_sequence(tokens, 1));
  EXPECT_FALSE(is_sequence(tokens, 2));
}

// Patches of a picture, rows by columns, are one dimension of attention. Its larger part is the
// sequence, so that the layers between are split and not gathered; with a decoder's tokens too.
TEST(Home, OfRowsAndColumnsOfPatchesOneIsTheSequence) {
  for (const auto& [rows, columns] : std::map<int64_t, int64_t>{{6, 5}, {4, 8}, {5, 5}}) {
    for (const bool with_tokens : {false, true}) {
      SCOPED_TRACE(fmt::format("{} x {}, {}", rows, columns, with_tokens));
      ir::Graph graph;
      ir::Builder build(graph);
      const ValueId pixels =
          graph.add_input("pixels", {ir::DataType::kFloat32, {2, 3, rows, columns}});
      const ValueId w = graph.add_input("w", {ir::DataType::kFloat32, {3, 4}});
      const ValueId patches =
          build.transpose(build.reshape(pixels, {2, 3, rows * columns}), {0, 2, 1});
      const ValueId x = build.matmul(patches, w);
      const ValueId scores = build.matmul(x, build.transpose(x, {0, 2, 1}));
      const ValueId y = build.matmul(build.softmax("Softmax", scores, -1), x);
      ValueId loss = build.reduce_sum(y, {0, 1, 2}, false);
      if (with_tokens) {
        const ValueId ids = graph.add_input("input_ids", {ir::DataType::kInt64, {2, 7}});
        loss =
            build.binary("Add", loss, build.reduce_sum(build.gather(w, ids, 0), {0, 1, 2}, false));
      }
      graph.add_output("loss", loss);
      graph.add_output("w.grad", build.identity(w));
      const shard::Roles roles = shard::detect_roles(graph);
      const shard::FactorAnalysis analysis(graph, roles.is_parameter);
      const shard::HomeClasses home = shard::find_home(analysis, roles);
      const auto is_sequence = [&](size_t axis) {
        return home.sequence.contains(analysis.class_of(analysis.dims(pixels)[axis].at(0)));
      };
      EXPECT_EQ(is_sequence(2), rows >= columns);
      EXPECT_EQ(is_sequence(3), rows < columns);
    }
  }
}

// Features of patches, which attend to each other, take the places of tokens: both are sequences.
TEST(Plan, RowsLookedUpInASequenceOfTheirOwnAreSplitByTheTokens) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ValueId ids = graph.add_input("input_ids", {ir::DataType::kInt64, {2, 6}});
  const ValueId pixels = graph.add_input("pixels", {ir::DataType::kFloat32, {2, 3, 8}});
  const ValueId w = graph.add_input("w", {ir::DataType::kFloat32, {3, 4}});
  const ValueId x = build.matmul(build.transpose(pixels, {0, 2, 1}), w);
  const ValueId scores = build.matmul(x, build.transpose(x, {0, 2, 1}));
  const ValueId features = build.matmul(build.softmax("Softmax", scores, -1), x);
  const ValueId table = build.reshape(features, {16, 4});
  const ValueId places = build.reshape(ids, {2, 6, 1});
  const ValueId rows = build.node("GatherND", {table, places}, {ir::DataType::kFloat32, {2, 6, 4}});
  const ValueId zeros = build.zeros({ir::DataType::kFloat32, {16, 4}});
  const ValueId gradient =
      build.node("ScatterND", {zeros, places, build.unary("Tanh", rows)},
                 {ir::DataType::kFloat32, {16, 4}}, {{"reduction", std::string("add")}});
  graph.add_output("loss", build.reduce_sum(rows, {0, 1, 2}, false));
  graph.add_output("w.grad", build.matmul(build.reshape(pixels, {3, 16}), gradient));
  const shard::Plan plan = shard::make_plan(graph, shard::detect_roles(graph), {.sp = 2});
  for (const auto& gathered : plan.gathered) {
    const std::string& op = graph.node(gathered.node).op;
    EXPECT_TRUE(op != "GatherND" && op != "ScatterND") << op;
  }
}

// Attention inside one block that was sliced off, where nothing else of the sequence is left
// (CANINE).
// A ring passes stretches of the major dimension on; where columns are split, it says so.
TEST(Ring, OfColumnsOfPatchesIsRefused) {
  for (const auto& [rows, columns] : std::map<int64_t, int64_t>{{8, 4}, {4, 8}}) {
    SCOPED_TRACE(fmt::format("{} x {}", rows, columns));
    ir::Graph graph;
    ir::Builder build(graph);
    const int64_t count = rows * columns;
    const ValueId pixels =
        graph.add_input("pixels", {ir::DataType::kFloat32, {2, 4, rows, columns}});
    const ValueId w = graph.add_input("w", {ir::DataType::kFloat32, {4, 4}});
    const ValueId x =
        build.matmul(build.transpose(build.reshape(pixels, {2, 4, count}), {0, 2, 1}), w);
    const ValueId heads = build.transpose(build.reshape(x, {2, count, 2, 2}), {0, 2, 1, 3});
    const ir::Type output{ir::DataType::kFloat32, {2, 2, count, 2}};
    const ir::Type row{ir::DataType::kFloat32, {2, 2, count}};
    const ValueId y = build.node("Attention", {heads, heads, heads}, {output, row, row},
                                 {{"scale", 1.0F}}, std::string(ir::kAutospDomain), {})[0];
    graph.add_output("loss", build.reduce_sum(y, {0, 1, 2, 3}, false));
    graph.add_output("w.grad", build.identity(w));
    const shard::Plan plan = shard::make_plan(graph, shard::detect_roles(graph),
                                              {.sp = 2, .sp_mesh = {{"r", 2}}, .ring = true});
    EXPECT_EQ(plan.has_ring(), rows > columns);
    if (plan.has_ring()) continue;
    ASSERT_EQ(plan.ring_refusals.size(), 1U);
    EXPECT_NE(plan.ring_refusals[0].reason.find("a minor one is split"), std::string::npos);
  }
}

TEST(Home, TheInsideOfABlockIsNoSequenceBesideTheBlocks) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ValueId ids = graph.add_input("input_ids", {ir::DataType::kInt64, {2, 12}});
  const ValueId w = graph.add_input("w", {ir::DataType::kFloat32, {9, 6}});
  const ValueId blocks = build.reshape(build.gather(w, ids, 0), {2, 4, 3, 6});
  const ValueId x = build.reshape(build.slice(blocks, 1, 0, 1), {2, 3, 6});
  const ValueId scores = build.matmul(x, build.transpose(build.unary("Tanh", x), {0, 2, 1}));
  const ValueId y = build.matmul(build.softmax("Softmax", scores, -1), x);
  graph.add_output("loss", build.reduce_sum(y, {0, 1, 2}, false));
  graph.add_output("w.grad", build.identity(w));
  const shard::Roles roles = shard::detect_roles(graph);
  const shard::FactorAnalysis analysis(graph, roles.is_parameter);
  const shard::HomeClasses home = shard::find_home(analysis, roles);
  const shard::AtomList& positions = analysis.dims(ids)[1];
  ASSERT_EQ(positions.size(), 2);
  EXPECT_TRUE(home.sequence.contains(analysis.class_of(positions[0])));
  EXPECT_FALSE(home.sequence.contains(analysis.class_of(positions[1])));
}

TEST(Roles, TheBatchComesSecondWhereTheSequenceComesFirst) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ValueId ids = graph.add_input("input_ids", {ir::DataType::kInt64, {8, 2}});
  const ValueId w = graph.add_input("w", {ir::DataType::kFloat32, {16}});
  graph.add_output("loss", build.reduce_sum(build.gather(w, ids, 0), {0, 1}, false));
  graph.add_output("w.grad", build.identity(w));
  const shard::Roles roles = shard::detect_roles(graph, {.named_dims = {{"seq", "input_ids", 0}}});
  EXPECT_EQ(roles.sequence, (std::vector<shard::DimTag>{{ids, 0}}));
  EXPECT_EQ(roles.batch, (std::vector<shard::DimTag>{{ids, 1}}));
}

TEST(Roles, AGradientIsNeverTakenForTheLoss) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ValueId x = graph.add_input("inputs_embeds", {ir::DataType::kFloat32, {2, 8, 4}});
  const ValueId w = graph.add_input("w", {ir::DataType::kFloat32, {}});
  const ValueId total = build.reduce_sum(build.binary("Mul", x, w), {0, 1, 2}, false);
  graph.add_output("gone.grad", total);  // of a parameter that was folded away
  graph.add_output("w.grad", total);
  graph.add_output("objective", total);
  EXPECT_EQ(graph.outputs()[*shard::detect_roles(graph).loss].name, "objective");
}

TEST(Roles, AnUnknownSequenceInputGetsASuggestion) {
  shard::RoleOptions roles;
  roles.sequence = {"input_id:1"};
  const std::string message = message_of([&] { plan("nano_static.onnx", {.sp = 2}, {}, roles); });
  EXPECT_NE(message.find("did you mean 'input_ids'?"), std::string::npos) << message;
}

TEST(Roles, TheLossAndEveryGradientAreFound) {
  const auto planned = plan("nano_static.onnx", {.sp = 2});
  const shard::Roles& roles = planned->plan.roles;
  EXPECT_EQ(planned->graph.outputs()[*roles.loss].name, "loss");
  EXPECT_EQ(roles.gradients.size(), planned->graph.outputs().size() - 1);
}

TEST(Explain, NamesLayoutRuleAndTheOtherChoice) {
  const auto planned = plan("nano_static.onnx", {.sp = 2});
  std::string softmax;
  for (const ir::Node& node : planned->graph.nodes()) {
    if (node.is("Softmax")) softmax = shard::explain(planned->plan, node.outputs[0]);
  }
  EXPECT_NE(softmax.find("Softmax"), std::string::npos) << softmax;
  EXPECT_NE(softmax.find("home         not possible"), std::string::npos) << softmax;
  EXPECT_NE(softmax.find("alternative (split by heads"), std::string::npos) << softmax;
}

}  // namespace
}  // namespace autosp

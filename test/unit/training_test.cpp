// What a training step keeps where, and its update: shards, bytes, and every optimizer's graph.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "ir/builder.h"
#include "ir/operator_traits.h"
#include "shard/roles.h"
#include "support/run_graph.h"
#include "transforms/training/emit_update.h"
#include "transforms/training/loss_weight.h"
#include "transforms/training/training_plan.h"

namespace autosp {
namespace {

using ir::DataType;
using transforms::Bucket;
using transforms::TrainedParameter;
using transforms::TrainingPlan;

TrainedParameter parameter(const std::string& name, ir::Shape shape,
                           DataType dtype = DataType::kFloat32) {
  return {.name = name,
          .gradient = name + ".grad",
          .type = {dtype, std::move(shape)},
          .gradient_dtype = dtype};
}

TrainingPlan plan_of(std::vector<TrainedParameter> parameters, int zero, int64_t ranks,
                     int64_t bucket_bytes = 1 << 20) {
  TrainingPlan plan;
  plan.zero = zero;
  plan.ranks = ranks;
  plan.parameters = std::move(parameters);
  std::vector<size_t> order;
  for (size_t k = 0; k < plan.parameters.size(); ++k) order.push_back(k);
  plan.buckets = transforms::make_buckets(plan.parameters, order, bucket_bytes, ranks);
  return plan;
}

TEST(TrainingPlan, BucketsHoldOneTypeAndNoMoreThanTheyMay) {
  const auto plan =
      plan_of({parameter("a", {3, 5}), parameter("b", {7}), parameter("c", {4}, DataType::kFloat16),
               parameter("d", {200}), parameter("e", {})},
              1, 4, 100);
  std::vector<size_t> members;
  for (const Bucket& bucket : plan.buckets) members.push_back(bucket.members.size());
  EXPECT_THAT(members, testing::ElementsAre(2, 1, 1, 1));
  EXPECT_EQ(plan.buckets[0].elements, 22);
  EXPECT_EQ(plan.buckets[0].members[1].offset, 15);
  EXPECT_THAT(plan.buckets[0].cuts, testing::ElementsAre(0, 6, 12, 17, 22));
  // One element for four ranks: three of them hold nothing.
  EXPECT_THAT(plan.buckets[3].cuts, testing::ElementsAre(0, 1, 1, 1, 1));
}

TEST(TrainingPlan, ShardsOfAllRanksAreTheWhole) {
  for (int64_t ranks : {1, 2, 3, 7, 8}) {
    auto plan =
        plan_of({parameter("a", {13}), parameter("b", {1}), parameter("c", {2, 3})}, 3, ranks);
    plan.optimizer.name = "adam";
    int64_t state = 0;
    int64_t most = 0;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const auto bytes = transforms::training_bytes(plan, rank);
      state += bytes.optimizer_state;
      most = std::max(most, bytes.optimizer_state);
      EXPECT_EQ(bytes.parameters * 2, bytes.optimizer_state);
      EXPECT_EQ(bytes.gradients, bytes.parameters);
    }
    EXPECT_EQ(state, 20 * 4 * 2);
    EXPECT_EQ(most, (20 + ranks - 1) / ranks * 4 * 2);
  }
}

TEST(TrainingPlan, SixteenBitParametersKeepACopyInFloat32) {
  const auto plan = plan_of({parameter("w", {6}, DataType::kBFloat16)}, 0, 1);
  EXPECT_THAT(transforms::state_names(plan, DataType::kBFloat16), testing::ElementsAre("master"));
  EXPECT_EQ(transforms::training_bytes(plan, 0).optimizer_state, 24);
}

ir::Tensor floats(ir::Shape shape, std::vector<float> values) {
  return ir::Tensor::from_values<float>(std::move(shape), values);
}

ir::Tensor int64_scalar(int64_t value) { return ir::Tensor::int64s({value}).reshaped({}); }

// A bfloat16 weight of 1 that moves by 1/512 a step: less than half of what it can show, so without
// the copy it would never move.
TEST(Update, SmallStepsAddUpInSixteenBits) {
  auto plan = plan_of({parameter("w", {1}, DataType::kBFloat16)}, 0, 1);
  const ir::Graph graph = transforms::emit_update(plan, 0);
  test::Tensors kept = {{"w", ir::Tensor::filled({DataType::kBFloat16, {1}}, 1)},
                        {"w.master", floats({1}, {1})}};
  for (int64_t step = 1; step <= 8; ++step) {
    test::Tensors feeds = kept;
    feeds["w.grad"] = ir::Tensor::filled({DataType::kBFloat16, {1}}, 1);
    feeds["learning_rate"] = floats({}, {1.0F / 512});
    feeds["step"] = int64_scalar(step);
    const test::Tensors results = test::run_graph(graph, feeds);
    kept = {{"w", results.at("w.new")}, {"w.master", results.at("w.master.new")}};
  }
  EXPECT_EQ(kept.at("w.master").value_as_double(0), 1 - 8.0 / 512);
  EXPECT_EQ(kept.at("w").value_as_double(0), 1 - 8.0 / 512);
}

class EveryOptimizer : public testing::TestWithParam<std::string> {};

// One rank's bucket and whole parameters are two ways to say the same.
TEST_P(EveryOptimizer, UpdatesABucketAsItUpdatesItsParameters) {
  auto whole = plan_of({parameter("a", {3, 5}), parameter("b", {7})}, 0, 1);
  whole.optimizer = {.name = GetParam(), .momentum = 0.9, .weight_decay = 0.1, .clip_norm = 0.5};
  TrainingPlan flat = whole;
  flat.zero = 3;
  const ir::Graph by_name = transforms::emit_update(whole, 0);
  const ir::Graph by_bucket = transforms::emit_update(flat, 0);
  test::Tensors feeds = test::random_feeds(by_name);
  feeds["step"] = int64_scalar(2);
  feeds["learning_rate"] = floats({}, {0.01F});
  for (auto& [name, tensor] : feeds) {  // squares are not negative
    if (tensor.dtype() != DataType::kFloat32) continue;
    ir::Tensor positive(tensor.type(), tensor.bytes());
    for (float& value : positive.mutable_values<float>()) value = std::abs(value);
    tensor = positive;
  }
  test::Tensors flat_feeds = {{"step", feeds.at("step")},
                              {"learning_rate", feeds.at("learning_rate")}};
  const auto join = [&](const test::Tensors& from, const std::string& suffix) {
    std::vector<float> values;
    for (const char* name : {"a", "b"}) {
      const auto part = from.at(name + suffix).values<float>();
      values.insert(values.end(), part.begin(), part.end());
    }
    return floats({22}, values);
  };
  std::vector<std::string> suffixes = {"", ".grad"};
  for (const std::string& state : transforms::state_names(whole, DataType::kFloat32)) {
    suffixes.push_back("." + state);
  }
  for (const std::string& suffix : suffixes) flat_feeds["bucket_0" + suffix] = join(feeds, suffix);
  const test::Tensors want = test::run_graph(by_name, feeds);
  const test::Tensors got = test::run_graph(by_bucket, flat_feeds);
  EXPECT_GT(want.at("gradient_norm").value_as_double(0), 0.5);
  for (const std::string& suffix : suffixes) {
    if (suffix == ".grad") continue;
    test::expect_close({{"x", got.at("bucket_0" + suffix + ".new")}},
                       {{"x", join(want, suffix + ".new")}}, 1e-6);
  }
}

std::vector<std::string> optimizer_names() {
  std::vector<std::string> names;
  for (const auto& row : transforms::optimizers()) names.emplace_back(row.name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(Optimizers, EveryOptimizer, testing::ValuesIn(optimizer_names()),
                         [](const auto& parameters) { return parameters.param; });

TEST(Update, SumsOverRanksOnceAndInTheSameOrder) {
  auto plan = plan_of({parameter("a", {5}), parameter("b", {2})}, 1, 3, 20);
  plan.optimizer.clip_norm = 1;
  for (int64_t rank = 0; rank < 3; ++rank) {
    std::vector<std::string> collectives;
    const ir::Graph graph = transforms::emit_update(plan, rank);
    for (const ir::Node& node : graph.nodes()) {
      if (ir::is_collective(node)) collectives.push_back(node.name);
    }
    EXPECT_THAT(collectives,
                testing::ElementsAre("bucket_0@ReduceScatter", "bucket_1@ReduceScatter",
                                     "gradient_norm@AllReduce", "bucket_0@AllGather",
                                     "bucket_1@AllGather"));
  }
}

TEST(LossWeight, IsWhatTheLossIsDividedByLast) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ValueId sum = graph.add_input("sum", {DataType::kFloat32, {1}});
  const ValueId count = graph.add_input("count", {DataType::kFloat32, {1}});
  const ValueId mean = build.binary("Div", sum, count);
  graph.add_output("loss", build.squeeze(mean, {0}));
  graph.add_output("double", build.binary("Add", mean, mean));
  shard::Roles roles;
  EXPECT_EQ(transforms::loss_weight(graph, roles), std::nullopt);
  roles.loss = 0;
  EXPECT_EQ(transforms::loss_weight(graph, roles), count);
  roles.loss = 1;
  EXPECT_EQ(transforms::loss_weight(graph, roles), std::nullopt);
}

TEST(LossWeight, DoesNotMindFactors) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ValueId sum = graph.add_input("sum", {DataType::kFloat32, {}});
  const ValueId count = graph.add_input("count", {DataType::kFloat32, {}});
  const ValueId four = build.scalar(DataType::kFloat32, 4);
  const ValueId mean = build.binary("Div", sum, count);
  graph.add_output("quarter", build.binary("Div", mean, four));
  graph.add_output("scaled", build.binary("Mul", four, mean));
  graph.add_output("fixed", build.binary("Div", sum, four));
  graph.add_output("product", build.binary("Mul", sum, mean));
  const auto weight_of = [&](size_t output) {
    shard::Roles roles;
    roles.loss = output;
    return transforms::loss_weight(graph, roles);
  };
  EXPECT_EQ(weight_of(0), count);
  EXPECT_EQ(weight_of(1), count);
  EXPECT_EQ(weight_of(2), four);
  EXPECT_EQ(weight_of(3), std::nullopt);
}

// A batch without valid tokens must not weigh as one with a token.
TEST(LossWeight, IsTheCountBeforeItIsRaisedToOne) {
  ir::Graph graph;
  ir::Builder build(graph);
  const ValueId sum = graph.add_input("sum", {DataType::kFloat32, {}});
  const ValueId count = graph.add_input("count", {DataType::kInt64, {}});
  const auto over = [&](ValueId divisor) {
    graph.add_output("loss", build.binary("Div", sum, build.cast(divisor, DataType::kFloat32)));
    shard::Roles roles;
    roles.loss = graph.outputs().size() - 1;
    return transforms::loss_weight(graph, roles);
  };
  const ValueId one = build.scalar(DataType::kInt64, 1);
  EXPECT_EQ(over(build.binary("Max", count, one)), count);
  EXPECT_EQ(over(build.binary("Max", one, count)), count);
  EXPECT_EQ(over(build.node("Clip", {count, one}, graph.type(count))), count);
  // Not the same where counts are lower than that.
  const ValueId at_least_ten = build.binary("Max", count, build.scalar(DataType::kInt64, 10));
  EXPECT_NE(over(at_least_ten), count);
}

TEST(Optimizers, NameTheNearMiss) {
  try {
    transforms::find_optimizer("adan");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.helps(), testing::ElementsAre("did you mean 'adam'?"));
  }
}

}  // namespace
}  // namespace autosp

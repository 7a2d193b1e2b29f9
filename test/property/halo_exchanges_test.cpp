// Windows of one value are fetched from the neighbours by one exchange, whatever the windows.
#include "transforms/spmd/halo_exchanges.h"

#include <gtest/gtest.h>

#include "ir/builder.h"
#include "run_program.h"
#include "shard/plan.h"
#include "support/run_graph.h"
#include "transforms/spmd/emit_ranks.h"
#include "transforms/spmd/emulate.h"

namespace autosp::transforms {
namespace {

using ir::Graph;

constexpr ir::DataType kFloat = ir::DataType::kFloat32;
constexpr int64_t kBatch = 2;
constexpr int64_t kWidth = 4;

// Weighted windows [begin, begin + tokens) of x w between `before` and `after` zeros, summed; their
// loss, and a product in the place of a gradient.
struct Windows {
  int64_t tokens;
  int64_t before;
  int64_t after;
  std::vector<int64_t> begins;

  Graph graph() const {
    Graph graph;
    ir::Builder build(graph);
    const ValueId x = graph.add_input("inputs_embeds", {kFloat, {kBatch, tokens, kWidth}});
    const ValueId w = graph.add_input("w", {kFloat, {kWidth, kWidth}});
    const ValueId padded = build.pad(build.matmul(x, w), {0, before, 0}, {0, after, 0});
    ValueId sum = build.matmul(x, w);
    for (size_t k = 0; k < begins.size(); ++k) {
      const ValueId window = build.slice(padded, 1, begins[k], begins[k] + tokens);
      const ValueId weight = build.scalar(kFloat, 0.5 + static_cast<double>(k));
      sum = build.binary("Add", sum, build.binary("Mul", window, weight));
    }
    const ValueId square = build.binary("Mul", sum, sum);
    graph.add_output("loss", build.reduce_sum(square, {0, 1, 2}, false));
    const auto flat = [&](ValueId value) {
      return build.reshape(value, {kBatch * tokens, kWidth});
    };
    graph.add_output("w.grad", build.matmul(build.transpose(flat(x), {1, 0}), flat(sum)));
    return graph;
  }
};

size_t count_exchanges(const SpmdProgram& program) {
  size_t count = 0;
  for (const CollectiveRecord& record : list_collectives(program)) {
    count += record.kind == StepKind::kAllToAll ? 1 : 0;
  }
  return count;
}

// On every kind of mesh: as many exchanges as said, and the loss of the whole graph.
void expect_exchanges(const Windows& windows, size_t exchanges) {
  const Graph graph = windows.graph();
  const shard::Roles roles = shard::detect_roles(graph);
  const test::Tensors feeds = test::random_feeds(graph);
  const test::Tensors whole = test::run_graph(graph, feeds);
  const shard::PlanOptions meshes[] = {{.sp = 2}, {.sp = 3, .dp = 2}, {.sp = 4}, {.sp = 5}};
  for (const shard::PlanOptions& options : meshes) {
    const shard::Plan plan = shard::make_plan(graph, roles, options);
    SCOPED_TRACE(plan.mesh.to_string());
    const SpmdProgram program = build_program(plan);
    EXPECT_EQ(count_exchanges(program), exchanges);
    test::expect_close(test::run_graph(emulate(program), feeds), whole);
    for (const executor::RankResult& rank : run_program(program, feeds).ranks) {
      test::expect_close(rank.outputs, whole);
    }
  }
}

TEST(HaloExchanges, OneServesAllTapsOfACausalConvolution) {
  expect_exchanges({.tokens = 23, .before = 3, .after = 0, .begins = {0, 1, 2, 3}}, 1);
}

TEST(HaloExchanges, OneServesBothSides) {
  expect_exchanges({.tokens = 22, .before = 2, .after = 2, .begins = {0, 1, 2, 3, 4}}, 1);
}

TEST(HaloExchanges, OneServesDilatedTaps) {
  expect_exchanges({.tokens = 24, .before = 4, .after = 4, .begins = {0, 4, 8}}, 1);
}

// A halo may be longer than a shard: then it comes from several neighbours.
TEST(HaloExchanges, OneReachesBeyondTheNearestNeighbour) {
  expect_exchanges({.tokens = 10, .before = 7, .after = 0, .begins = {0, 1, 2, 3, 4, 5, 6, 7}}, 1);
}

TEST(HaloExchanges, WindowsFarApartStayApart) {
  const Windows windows{.tokens = 40, .before = 40, .after = 40, .begins = {0, 40, 80}};
  const Graph graph = windows.graph();
  const shard::Plan plan = shard::make_plan(graph, shard::detect_roles(graph), {.sp = 5});
  EXPECT_EQ(count_exchanges(build_program(plan)), 2U);
}

}  // namespace
}  // namespace autosp::transforms

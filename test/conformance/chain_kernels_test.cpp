// Chains of elementwise operators and row sums: fused and run in blocks, they give what the
// reference kernels give one by one.
#include <gtest/gtest.h>

#include <cmath>

#include "executor/fuse_elementwise.h"
#include "executor/kernels/chain/loops.h"
#include "executor/run.h"
#include "ir/builder.h"
#include "support/random_chain.h"
#include "support/run_graph.h"

namespace autosp::executor {
namespace {

using ir::DataType;
using ir::Shape;

size_t num_chains(const ir::Graph& graph) {
  return test::count_nodes(graph, chain::kOp, ir::kAutospDomain);
}

void expect_same(const std::shared_ptr<const ir::Graph>& graph, const test::Tensors& feeds,
                 double tolerance = 3e-6) {
  const test::Tensors want = test::run_graph(*graph, feeds);
  for (const int workers : {1, 3}) {
    for (const bool share_memory : {true, false}) {
      RunOptions options{.threads_per_rank = workers};
      options.compile.share_memory = share_memory;
      options.compile.fuse = true;
      const RunResult result = run_in_threads({graph}, {feeds}, options);
      test::expect_close(result.ranks[0].outputs, want, tolerance);
      EXPECT_LE(result.ranks[0].arena_touched, result.ranks[0].planned.arena + 4096);
    }
  }
}

TEST(Chains, OfRandomStepsGiveWhatTheStepsGive) {
  size_t chains = 0;
  for (unsigned seed = 0; seed < 250 && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    const auto graph = test::random_chain(seed);
    chains += num_chains(*fuse_elementwise(graph, cpu_kernels()));
    expect_same(graph, test::random_feeds(*graph, {.seed = seed}), 1e-5);
  }
  EXPECT_GT(chains, 150U);
}

struct Built {
  std::shared_ptr<ir::Graph> graph = std::make_shared<ir::Graph>();
  ir::Builder build{*graph};
  ValueId input(const std::string& name, Shape shape) {
    return graph->add_input(name, {DataType::kFloat32, std::move(shape)});
  }
  ValueId mul(ValueId a, ValueId b) { return build.binary("Mul", a, b); }
  ValueId row_sum(ValueId x) { return build.reduce_sum(x, {-1}, true); }
};

TEST(Chains, AnRmsNormAndItsGradientAreOneEach) {
  Built b;
  const ValueId x = b.input("x", {2, 50, 96});
  const ValueId scale = b.input("scale", {96});
  const ValueId mean = b.mul(b.row_sum(b.mul(x, x)), b.build.scalar_like(x, 1.0 / 96));
  const ValueId epsilon = b.build.scalar_like(x, 1e-6);
  const ValueId inverse =
      b.build.unary("Reciprocal", b.build.unary("Sqrt", b.build.binary("Add", mean, epsilon)));
  const ValueId normal = b.mul(x, inverse);
  b.graph->add_output("y", b.mul(normal, scale));
  b.graph->add_output("inverse", inverse);
  EXPECT_EQ(num_chains(*fuse_elementwise(b.graph, cpu_kernels())), 1U);
  EXPECT_EQ(fuse_elementwise(b.graph, cpu_kernels())->nodes().size(), 1U);
  expect_same(b.graph, test::random_feeds(*b.graph));

  Built g;
  const ValueId dy = g.mul(g.input("dy", {2, 50, 96}), g.input("scale", {96}));
  const ValueId x2 = g.input("x", {2, 50, 96});
  const ValueId r = g.input("inverse", {2, 50, 1});
  const ValueId n = g.mul(x2, r);
  const ValueId dot = g.mul(g.row_sum(g.mul(dy, n)), g.build.scalar_like(dy, 1.0 / 96));
  g.graph->add_output("dx", g.mul(r, g.build.binary("Sub", dy, g.mul(n, dot))));
  EXPECT_EQ(fuse_elementwise(g.graph, cpu_kernels())->nodes().size(), 1U);
  expect_same(g.graph, test::random_feeds(*g.graph));
}

// gate * sigmoid(gate) * up, and its gradient with regard to both.
TEST(Chains, AGatedActivationAndItsGradientAreOne) {
  Built b;
  const ValueId gate = b.input("gate", {3, 40, 200});
  const ValueId up = b.input("up", {3, 40, 200});
  const ValueId dy = b.input("dy", {3, 40, 200});
  const ValueId s = b.build.unary("Sigmoid", gate);
  const ValueId silu = b.mul(gate, s);
  b.graph->add_output("y", b.mul(silu, up));
  b.graph->add_output("dup", b.mul(dy, silu));
  const ValueId one = b.build.scalar_like(gate, 1);
  const ValueId slope =
      b.mul(s, b.build.binary("Add", one, b.mul(gate, b.build.binary("Sub", one, s))));
  b.graph->add_output("dgate", b.mul(b.mul(dy, up), slope));
  EXPECT_EQ(fuse_elementwise(b.graph, cpu_kernels())->nodes().size(), 1U);
  expect_same(b.graph, test::random_feeds(*b.graph));
}

// What stands between two steps is computed before what reads it, whatever is fused.
TEST(Chains, AReaderInBetweenEndsTheChain) {
  Built b;
  const ValueId x = b.input("x", {30, 30});
  const ValueId a = b.build.unary("Tanh", b.build.unary("Neg", x));
  const ValueId product = b.build.matmul(a, x);
  b.graph->add_output("y", b.build.binary("Add", a, b.mul(product, a)));
  const auto fused = fuse_elementwise(b.graph, cpu_kernels());
  EXPECT_EQ(num_chains(*fused), 2U);
  expect_same(b.graph, test::random_feeds(*b.graph));
}

TEST(Chains, TakeLessMemoryThanTheirSteps) {
  Built b;
  const ValueId x = b.input("x", {400, 400});
  const ValueId a = b.build.unary("Tanh", x);
  const ValueId c = b.mul(b.build.unary("Sigmoid", x), b.build.unary("Exp", a));
  b.graph->add_output("y", b.build.binary("Add", b.mul(a, c), x));
  const CompileOptions options{.fuse = true};
  EXPECT_LT(compile(b.graph, options).memory().arena, 2 * 400 * 400 * 4);
}

// The same function for every instruction set.
TEST(ChainLoops, AgreeBetweenInstructionSets) {
  std::vector<float> x;
  for (int k = 0; k < 333; ++k) x.push_back(std::sin(static_cast<float>(k)) * 4);
  std::vector<float> y(x.rbegin(), x.rend());
  const chain::Loops* portable = chain::portable_loops();
  for (const chain::Loops* loops : {chain::avx2_loops(), chain::avx512_loops()}) {
    if (loops == nullptr) continue;
    const auto expect_near = [](const std::vector<float>& a, const std::vector<float>& b) {
      for (size_t k = 0; k < a.size(); ++k) {
        if (a[k] == b[k] || (std::isnan(a[k]) && std::isnan(b[k]))) continue;
        EXPECT_NEAR(a[k], b[k], 1e-6F * (1 + std::fabs(b[k]))) << k;
      }
    };
    std::vector<float> got(x.size());
    std::vector<float> want(x.size());
    const auto count = static_cast<int64_t>(x.size());
    for (int op = 0; op <= static_cast<int>(chain::Op::kExpand); ++op) {
      loops->unary(static_cast<chain::Op>(op), x.data(), got.data(), count);
      portable->unary(static_cast<chain::Op>(op), x.data(), want.data(), count);
      expect_near(got, want);
    }
    for (int op = static_cast<int>(chain::Op::kAdd); op <= static_cast<int>(chain::Op::kPow);
         ++op) {
      for (const auto& [first, second] : {std::pair{1, 1}, {1, 0}, {0, 1}, {0, 0}}) {
        const auto run = [&](const chain::Loops* l, std::vector<float>& result) {
          l->binary(static_cast<chain::Op>(op), {x.data() + 1, first}, {y.data() + 2, second},
                    result.data(), count - 2);
        };
        run(loops, got);
        run(portable, want);
        expect_near(got, want);
      }
    }
    EXPECT_EQ(loops->sum(x.data(), count), portable->sum(x.data(), count));
    EXPECT_EQ(loops->max(x.data(), count), portable->max(x.data(), count));
  }
}

}  // namespace
}  // namespace autosp::executor

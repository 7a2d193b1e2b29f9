// Fused chains on devices against their operators as kernels of their own, and against the
// reference: elementwise steps give the same bits on the emulated device, sums along rows the same
// but for the order of their terms.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "executor/fuse_elementwise.h"
#include "executor/kernels/chain/chain.h"
#include "executor/run.h"
#include "ir/builder.h"
#include "support/devices.h"
#include "support/emulated_device.h"
#include "support/random_chain.h"
#include "support/run_graph.h"

namespace autosp::executor {
namespace {

using ir::DataType;
using ir::Shape;
using test::Tensors;

using GraphPointer = std::shared_ptr<const ir::Graph>;

RunResult run_on(const std::shared_ptr<Backend>& backend, const GraphPointer& graph,
                 const Tensors& feeds, bool fuse, int repeat = 1) {
  RunOptions options{.threads_per_rank = 1, .repeat = repeat, .backend = backend};
  options.compile.fuse = fuse;
  return run_in_threads({graph}, {feeds}, options);
}

size_t num_chains(const ir::Graph& graph) {
  return test::count_nodes(graph, chain::kOp, ir::kAutospDomain);
}

GraphPointer fused(const GraphPointer& graph, const Backend& backend) {
  return fuse_elementwise(graph, device_kernels(backend));
}

bool has_sums(const ir::Graph& graph) {
  const std::set<std::string> along_rows = {"ReduceSum", "Softmax", "LogSoftmax"};
  return std::ranges::any_of(graph.nodes(),
                             [&](const ir::Node& node) { return along_rows.contains(node.op); });
}

void expect_same_bits(const Tensors& got, const Tensors& want) {
  for (const auto& [name, tensor] : want) {
    EXPECT_TRUE(std::ranges::equal(got.at(name).bytes(), tensor.bytes())) << name;
  }
}

double tolerance(DataType type) {
  if (type == DataType::kFloat16) return 4e-3;
  return type == DataType::kBFloat16 ? 3e-2 : 2e-5;
}

class DeviceChains : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const test::FoundDevice found = test::find_device(GetParam());
    if (found.backend == nullptr) GTEST_SKIP() << found.reason;
    backend_ = found.backend;
  }
  bool is_emulated() const { return GetParam() != "cuda"; }

  // Fused and not. Returns the number of chains.
  size_t check(const GraphPointer& graph, const Tensors& feeds, DataType type) {
    const Tensors apart = run_on(backend_, graph, feeds, false).ranks[0].outputs;
    const RunResult result = run_on(backend_, graph, feeds, true);
    const Tensors& together = result.ranks[0].outputs;
    EXPECT_TRUE(result.ranks[0].notices.empty()) << result.ranks[0].notices[0];
    if (is_emulated() && !has_sums(*graph)) expect_same_bits(together, apart);
    test::expect_close_or_nan(together, apart, tolerance(type));
    test::expect_close_or_nan(together, test::run_graph(*graph, feeds), tolerance(type));
    const RunResult on_cpu = run_on(nullptr, graph, feeds, true);
    test::expect_close_or_nan(together, on_cpu.ranks[0].outputs, tolerance(type));
    return num_chains(*fused(graph, *backend_));
  }

  std::shared_ptr<Backend> backend_;
};

TEST_P(DeviceChains, OfRandomStepsGiveWhatTheStepsGive) {
  size_t chains = 0;
  for (unsigned seed = 0; seed < 16 && !testing::Test::HasFailure(); ++seed) {
    for (const DataType type : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
      SCOPED_TRACE(fmt::format("seed {}, {}", seed, ir::name_of(type)));
      const GraphPointer graph = test::random_chain(seed, type);
      chains += check(graph, test::random_feeds(*graph, {.seed = seed}), type);
    }
  }
  EXPECT_GT(chains, 40U);
}

struct Built {
  std::shared_ptr<ir::Graph> graph = std::make_shared<ir::Graph>();
  ir::Builder build{*graph};
  ValueId input(const std::string& name, Shape shape, DataType type = DataType::kFloat32) {
    return graph->add_input(name, {type, std::move(shape)});
  }
  ValueId mul(ValueId a, ValueId b) { return build.binary("Mul", a, b); }
  ValueId row_sum(ValueId x) { return build.reduce_sum(x, {-1}, true); }
};

// As transformers have it in 16 bits: in float32 between casts, and scaled in 16 bits.
Built rms_norm(int64_t rows, int64_t columns, DataType type) {
  Built b;
  const ValueId x =
      b.build.cast(b.input("x", {2, rows, columns}, type), DataType::kFloat32, "wide");
  const ValueId mean =
      b.mul(b.row_sum(b.mul(x, x)), b.build.scalar_like(x, 1.0 / static_cast<double>(columns)));
  const ValueId inverse = b.build.unary(
      "Reciprocal",
      b.build.unary("Sqrt", b.build.binary("Add", mean, b.build.scalar_like(x, 1e-6))));
  const ValueId normal = b.build.cast(b.mul(x, inverse), type);
  b.graph->add_output("y", b.mul(b.input("scale", {columns}, type), normal));
  b.graph->add_output("inverse", inverse);
  return b;
}

TEST_P(DeviceChains, AnRmsNormIsOneKernelOfAnyWidth) {
  for (const DataType type : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
    for (const int64_t columns : {2, 7, 96, 640, 4096, 5000}) {
      SCOPED_TRACE(fmt::format("{} columns, {}", columns, ir::name_of(type)));
      const Built b = rms_norm(9, columns, type);
      EXPECT_EQ(fused(b.graph, *backend_)->nodes().size(), 1U);
      check(b.graph, test::random_feeds(*b.graph), type);
    }
  }
}

// Every set of dimensions, and leading ones left out.
TEST_P(DeviceChains, BroadcastAlongAnyDimensions) {
  for (const DataType type : {DataType::kFloat32, DataType::kBFloat16}) {
    Built b;
    const Shape shape = {3, 4, 5, 6};
    ValueId x = b.input("x", shape, type);
    for (size_t repeated = 0; repeated < 16; ++repeated) {
      Shape part = shape;
      for (size_t d = 0; d < 4; ++d) {
        if ((repeated >> d & 1) != 0) part[d] = 1;
      }
      if (repeated % 3 == 1) part.erase(part.begin());
      const ValueId mask =
          b.graph->add_input(fmt::format("mask{}", repeated), {DataType::kBool, part});
      const ValueId y = b.input(fmt::format("y{}", repeated), part, type);
      x = b.build.where(mask, b.build.binary("Add", x, y), b.build.unary("Neg", x));
    }
    b.graph->add_output("y", x);
    EXPECT_EQ(fused(b.graph, *backend_)->nodes().size(), 1U);
    check(b.graph, test::random_feeds(*b.graph), type);
  }
}

// A row longer than what its threads take at once, its largest entries far from zero.
TEST_P(DeviceChains, ACrossEntropysGradientOverWideRowsIsOneKernel) {
  Built b;
  const ValueId logits =
      b.build.binary("Add", b.input("logits", {5, 3001}), b.build.scalar(DataType::kFloat32, 300));
  const ValueId log = b.build.softmax("LogSoftmax", logits, -1);
  const ValueId picked = b.input("picked", {5, 3001});
  const ValueId sum = b.row_sum(picked);
  b.graph->add_output("dx", b.build.binary("Sub", picked, b.mul(b.build.unary("Exp", log), sum)));
  b.graph->add_output("max", b.build.reduce("ReduceMax", logits, {-1}, true));
  EXPECT_EQ(fused(b.graph, *backend_)->nodes().size(), 1U);
  check(b.graph, test::random_feeds(*b.graph), DataType::kFloat32);
}

// The first result, numbers of rows or a full value, lies over an operand that nothing reads
// afterwards.
TEST_P(DeviceChains, MayWriteOverTheirOperands) {
  Built rows;
  const ValueId x = rows.input("x", {70, 70});
  const ValueId shift = rows.build.matmul(x, rows.input("v", {70, 1}));
  const ValueId moved = rows.build.binary("Sub", rows.build.matmul(x, x), shift);
  const ValueId total = rows.build.binary("Add", rows.row_sum(moved), shift);
  rows.graph->add_output("total", total);
  rows.graph->add_output("y", rows.mul(moved, rows.build.unary("Sigmoid", total)));

  Built full;
  const ValueId product = full.build.matmul(full.input("a", {40, 64}), full.input("b", {64, 64}));
  full.graph->add_output("y",
                         full.mul(product, full.build.unary("Sigmoid", full.row_sum(product))));

  const KernelTable kernels = device_kernels(*backend_);
  for (const auto& graph : {rows.graph, full.graph}) {
    const Program program = compile(graph, {.kernels = &kernels, .fuse = true});
    const ir::Node& last = program.graph().nodes().back();
    ASSERT_EQ(last.op, chain::kOp);
    const int buffer = program.place(last.outputs[0]).buffer;
    EXPECT_TRUE(std::ranges::any_of(
        last.inputs, [&](ValueId input) { return program.place(input).buffer == buffer; }));
    check(graph, test::random_feeds(*graph), DataType::kFloat32);
  }
}

TEST_P(DeviceChains, NumbersOfTheModelAreInTheKernel) {
  Built b;
  const ValueId x = b.input("x", {3, 50});
  const auto number_of = [&](DataType type, double value) { return b.build.scalar(type, value); };
  const auto number = [&](double value) { return number_of(DataType::kFloat32, value); };
  const ValueId infinity = number(std::numeric_limits<double>::infinity());
  const ValueId bounded = b.build.binary("Min", b.build.binary("Max", x, number(-0.1)), infinity);
  const ValueId hidden = b.build.where(b.graph->add_input("mask", {DataType::kBool, {50}}), bounded,
                                       number(-std::numeric_limits<double>::infinity()));
  b.graph->add_output("y", b.build.unary("Exp", hidden));
  b.graph->add_output("z", b.build.binary("Pow", bounded, number(2)));
  b.graph->add_output("w", b.build.where(number_of(DataType::kBool, 0), bounded, hidden));
  const GraphPointer one = fused(b.graph, *backend_);
  EXPECT_EQ(one->nodes().size(), 1U);
  check(b.graph, test::random_feeds(*b.graph), DataType::kFloat32);
}

TEST_P(DeviceChains, AreKeptBetweenSteps) {
  const Built b = rms_norm(9, 96, DataType::kBFloat16);
  const Tensors feeds = test::random_feeds(*b.graph);
  const Tensors once = run_on(backend_, b.graph, feeds, true).ranks[0].outputs;
  expect_same_bits(run_on(backend_, b.graph, feeds, true, 4).ranks[0].outputs, once);
}

INSTANTIATE_TEST_SUITE_P(Devices, DeviceChains, testing::ValuesIn(test::device_names()),
                         [](const auto& parameters) { return parameters.param; });

TEST(EmulatedChains, AreOneLaunchEach) {
  const Built b = rms_norm(9, 96, DataType::kBFloat16);
  const Tensors feeds = test::random_feeds(*b.graph);
  for (const bool fuse : {false, true}) {
    const auto backend = std::make_shared<test::EmulatedBackend>();
    run_on(backend, b.graph, feeds, fuse);
    EXPECT_EQ(backend->counts().launches, fuse ? 1 : 10) << fuse;
  }
}

// An operator alone is a kernel that is there already.
TEST(EmulatedChains, AreOfTwoStepsAtLeast) {
  Built b;
  b.graph->add_output("y", b.build.unary("Tanh", b.input("x", {400, 400})));
  EXPECT_EQ(num_chains(*fused(b.graph, test::EmulatedBackend())), 0U);
}

TEST(EmulatedChains, AreSeparateKernelsWhereNothingCompilesThem) {
  const auto backend =
      std::make_shared<test::EmulatedBackend>(test::EmulatedOptions{.compiles = false});
  const Built b = rms_norm(9, 96, DataType::kFloat32);
  const Tensors feeds = test::random_feeds(*b.graph);
  const RunResult result = run_on(backend, b.graph, feeds, true);
  expect_same_bits(result.ranks[0].outputs,
                   run_on(backend, b.graph, feeds, false).ranks[0].outputs);
  EXPECT_EQ(result.ranks[0].notices,
            std::vector<std::string>{"elementwise operators that could be one kernel are one each: "
                                     "there is no compiler"});
}

}  // namespace
}  // namespace autosp::executor

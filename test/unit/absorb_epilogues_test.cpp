#include "executor/absorb_epilogues.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include "executor/run.h"
#include "ir/builder.h"
#include "support/emulated_device.h"
#include "support/run_graph.h"

namespace autosp::executor {
namespace {

using ir::DataType;
using ir::Shape;
using ::testing::ElementsAre;

ir::Type floats(Shape shape) { return {DataType::kFloat32, std::move(shape)}; }

struct Case {
  std::shared_ptr<ir::Graph> graph = std::make_shared<ir::Graph>();
  ir::Builder build{*graph};
  int inputs = 0;

  ValueId input(Shape shape) {
    return graph->add_input(fmt::format("x{}", inputs++), floats(std::move(shape)));
  }
  ValueId product(int64_t m = 6, int64_t k = 4, int64_t n = 8) {
    return build.matmul(input({m, k}), input({k, n}));
  }
  ValueId add(ValueId a, ValueId b) { return build.binary("Add", a, b); }
  void output(ValueId value) { graph->add_output(fmt::format("y{}", value.index()), value); }
};

// The operators that move data, of the device's program.
std::vector<std::string> steps(const Case& c) {
  const test::EmulatedBackend backend;
  const KernelTable kernels = device_kernels(backend);
  const Program program = compile(c.graph, {.kernels = &kernels});
  std::vector<std::string> result;
  for (size_t k = 0; k < program.graph().nodes().size(); ++k) {
    if (!program.is_view(k)) result.push_back(program.graph().nodes()[k].op);
  }
  return result;
}

// On the device against the reference kernels, with and without cuBLASLt's word for it.
void expect_as_reference(const Case& c) {
  const Arrays feeds = test::random_feeds(*c.graph);
  const Arrays expected = test::run_graph(*c.graph, feeds);
  for (const bool refuses : {false, true}) {
    SCOPED_TRACE(refuses ? "epilogues refused" : "epilogues taken");
    RunOptions options;
    options.backend = std::make_shared<test::EmulatedBackend>(
        test::EmulatedOptions{.refuses_epilogues = refuses});
    test::expect_close(run_in_threads({c.graph}, {feeds}, options).ranks[0].outputs, expected);
  }
}

TEST(AbsorbEpilogues, OfABias) {
  Case c;
  c.output(c.add(c.input({8}), c.product()));
  EXPECT_THAT(steps(c), ElementsAre("FusedMatMul"));
  expect_as_reference(c);
}

TEST(AbsorbEpilogues, OfABiasForHeads) {
  Case c;
  const ValueId heads = c.build.reshape(c.product(), {2, 3, 4, 2});
  c.output(c.add(heads, c.input({1, 4, 2})));
  EXPECT_THAT(steps(c), ElementsAre("FusedMatMul"));
  expect_as_reference(c);
}

TEST(AbsorbEpilogues, OfABiasAResidualAndARelu) {
  Case c;
  const ValueId residual = c.input({2, 3, 8});
  const ValueId linear = c.add(c.product(), c.input({1, 8}));
  c.output(c.build.unary("Relu", c.add(c.build.reshape(linear, {2, 3, 8}), residual)));
  EXPECT_THAT(steps(c), ElementsAre("FusedMatMul"));
  expect_as_reference(c);
}

TEST(AbsorbEpilogues, OfBatchesAndTransposes) {
  Case c;
  const ValueId a = c.build.transpose(c.input({5, 4, 6}), {0, 2, 1});
  const ValueId product = c.build.matmul(a, c.input({5, 4, 8}));
  c.output(c.add(c.add(product, c.input({5, 6, 8})), c.input({8})));
  EXPECT_THAT(steps(c), ElementsAre("FusedMatMul"));
  expect_as_reference(c);
}

TEST(AbsorbEpilogues, OfASumOfProducts) {
  Case c;
  const ValueId first = c.product();
  const ValueId second = c.product();
  const ValueId third = c.product();
  c.output(c.add(c.add(first, second), third));
  EXPECT_THAT(steps(c), ElementsAre("MatMul", "FusedMatMul", "FusedMatMul"));
  expect_as_reference(c);
}

TEST(AbsorbEpilogues, OfGemm) {
  Case c;
  const ir::Attributes scaled{{"alpha", 0.5F}, {"transB", int64_t{1}}};
  const ValueId y = c.build.node("Gemm", {c.input({6, 4}), c.input({8, 4}), c.input({8})},
                                 floats({6, 8}), scaled);
  c.output(c.build.unary("Relu", y));
  EXPECT_THAT(steps(c), ElementsAre("FusedMatMul"));
  expect_as_reference(c);
}

TEST(AbsorbEpilogues, LeavesAGemmAloneThatScalesItsBiasOrSpreadsAColumn) {
  Case c;
  const ValueId scaled = c.build.node("Gemm", {c.input({6, 4}), c.input({4, 8}), c.input({8})},
                                      floats({6, 8}), {{"beta", 2.0F}});
  const ValueId column =
      c.build.node("Gemm", {c.input({6, 4}), c.input({4, 8}), c.input({6, 1})}, floats({6, 8}));
  c.output(c.build.unary("Relu", scaled));
  c.output(c.build.unary("Relu", column));
  EXPECT_THAT(steps(c), ElementsAre("Gemm", "Gemm", "Relu", "Relu"));
  expect_as_reference(c);
}

// A column, a scalar, and what makes the result larger are no epilogues.
TEST(AbsorbEpilogues, LeavesOtherBroadcastsAlone) {
  for (const Shape& shape : {Shape{6, 1}, Shape{}, Shape{3, 6, 8}, Shape{3, 1, 8}}) {
    Case c;
    c.output(c.add(c.product(), c.input(shape)));
    EXPECT_THAT(steps(c), ElementsAre("MatMul", "Add"));
    expect_as_reference(c);
  }
}

TEST(AbsorbEpilogues, LeavesWhatIsReadOtherwiseAlone) {
  Case twice;
  const ValueId product = twice.product();
  twice.output(twice.add(product, product));
  EXPECT_THAT(steps(twice), ElementsAre("MatMul", "Add"));
  Case output;
  const ValueId shown = output.product();
  output.output(shown);
  output.output(output.add(shown, output.input({8})));
  EXPECT_THAT(steps(output), ElementsAre("MatMul", "Add"));
  Case view;
  const ValueId viewed = view.product();
  view.output(view.add(view.build.reshape(viewed, {2, 3, 8}), view.input({8})));
  view.output(view.build.unary("Exp", viewed));
  EXPECT_THAT(steps(view), ElementsAre("MatMul", "Add", "Exp"));
}

TEST(AbsorbEpilogues, OfNothingBehindARelu) {
  Case c;
  const ValueId hidden = c.build.unary("Relu", c.product());
  c.output(c.add(hidden, c.input({8})));
  EXPECT_THAT(steps(c), ElementsAre("FusedMatMul", "Add"));
  expect_as_reference(c);
}

// The product does not move behind what it would have to wait for.
TEST(AbsorbEpilogues, LeavesATermAloneThatIsComputedLater) {
  Case c;
  const ValueId product = c.product();
  const ValueId later = c.build.unary("Exp", c.input({6, 8}));
  c.output(c.add(product, later));
  EXPECT_THAT(steps(c), ElementsAre("MatMul", "Exp", "Add"));
  expect_as_reference(c);
}

TEST(AbsorbEpilogues, WritesOverTheTermThatItReadsLast) {
  Case c;
  const ValueId residual = c.build.unary("Exp", c.input({256, 512}));
  c.output(c.build.unary("Neg", c.add(c.product(256, 64, 512), residual)));
  const test::EmulatedBackend backend;
  const KernelTable kernels = device_kernels(backend);
  EXPECT_EQ(compile(c.graph, {.kernels = &kernels}).memory().arena, int64_t{256} * 512 * 4);
  expect_as_reference(c);
}

// An operand of the product itself is not written over.
TEST(AbsorbEpilogues, AddsAnOperandOfTheProduct) {
  Case c;
  const ValueId x = c.build.unary("Exp", c.input({8, 8}));
  c.output(c.add(c.build.matmul(x, c.input({8, 8})), x));
  EXPECT_THAT(steps(c), ElementsAre("Exp", "FusedMatMul"));
  expect_as_reference(c);
}

TEST(AbsorbEpilogues, AreOfDevicesAlone) {
  Case c;
  c.output(c.build.unary("Relu", c.add(c.product(), c.input({8}))));
  EXPECT_EQ(absorb_epilogues(c.graph, cpu_kernels()), c.graph);
  EXPECT_EQ(absorb_epilogues(c.graph, reference_kernels()), c.graph);
}

}  // namespace
}  // namespace autosp::executor

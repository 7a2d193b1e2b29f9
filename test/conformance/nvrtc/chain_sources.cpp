// NVRTC takes the source of chains of every operator, element type and way to broadcast, for a GPU
// that need not be there.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "cuda/chains/device_text.h"
#include "cuda/chains/kernel.h"
#include "cuda/chains/operations.h"
#include "cuda/library.h"
#include "cuda/nvrtc.h"
#include "executor/fuse_elementwise.h"
#include "executor/kernels/chain/chain.h"
#include "ir/builder.h"
#include "support/emulated_device.h"
#include "support/random_chain.h"

namespace autosp::chains {
namespace {

using ir::DataType;
using ir::Shape;

constexpr const char* kArchitecture = "sm_90";

std::function<void(const executor::KernelCall&)> make_nothing(const executor::Backend& /*backend*/,
                                                              const ir::Graph& /*graph*/,
                                                              const ir::Node& /*chain*/) {
  return [](const executor::KernelCall&) {};
}

// The sources of a graph's chains.
std::vector<Source> sources_of(const std::shared_ptr<const ir::Graph>& graph) {
  const test::EmulatedBackend backend;
  const executor::KernelTable kernels("none", {chain_row(make_nothing)}, &executor::cpu_kernels(),
                                      &backend);
  const auto fused = executor::fuse_elementwise(graph, kernels);
  std::vector<Source> sources;
  for (const ir::Node& node : fused->nodes()) {
    if (node.op == executor::chain::kOp) sources.push_back(source_of(*fused, node));
  }
  return sources;
}

class ChainSources : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::nvrtc().handle() == nullptr) GTEST_SKIP() << "libnvrtc.so.13 was not found";
  }
  void expect_compiled(const std::shared_ptr<const ir::Graph>& graph, size_t chains) {
    const std::vector<Source> sources = sources_of(graph);
    EXPECT_GE(sources.size(), chains);
    for (const Source& source : sources) {
      SCOPED_TRACE(source.text);
      EXPECT_FALSE(cuda::compile(device_text(source.text), kArchitecture).empty());
      text_ += source.text;
    }
  }
  std::string text_;  // of all
};

struct Built {
  std::shared_ptr<ir::Graph> graph = std::make_shared<ir::Graph>();
  ir::Builder build{*graph};
};

// Every operator on full values, rows, columns, numbers, and what repeats in the middle.
std::shared_ptr<const ir::Graph> every_operator(DataType type, const Shape& shape) {
  Built b;
  const auto input = [&](const Shape& of, DataType t) {
    return b.graph->add_input(fmt::format("x{}", b.graph->inputs().size()), {t, of});
  };
  const Shape rows = {shape[0], shape[1], 1};
  const Shape middle = {shape[0], 1, shape[2]};
  ValueId x = input(shape, type);
  for (const char* op : {"Neg", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Sigmoid", "Tanh", "Erf",
                         "Relu", "Sin", "Cos"}) {
    x = b.build.unary(op, x);
  }
  const Shape others[] = {shape, rows, middle, {shape[2]}, {1}, {shape[0], 1, 1}};
  size_t next = 0;
  for (const char* op : {"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"}) {
    x = b.build.binary(op, x, input(others[next++ % std::size(others)], type));
  }
  for (const Shape& of : others) {
    x = b.build.where(input(of, DataType::kBool), x, input(of, type));
  }
  const ValueId sum = b.build.unary("Neg", b.build.reduce_sum(x, {-1}, true));
  const ValueId max = b.build.reduce("ReduceMax", x, {-1}, true);
  x = b.build.binary("Add", b.build.softmax("Softmax", x, -1), b.build.expand(sum, shape));
  x = b.build.binary("Add", b.build.softmax("LogSoftmax", x, -1), max);
  for (const DataType other : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
    b.graph->add_output(fmt::format("y{}", static_cast<int>(other)), b.build.cast(x, other));
  }
  b.graph->add_output("sum", sum);
  b.graph->add_output("x", x);
  return b.graph;
}

TEST_F(ChainSources, OfEveryOperatorCompile) {
  const std::pair<DataType, int64_t> cases[] = {{DataType::kFloat32, 9},
                                                {DataType::kFloat32, 4096},
                                                {DataType::kFloat16, 66},
                                                {DataType::kBFloat16, 2}};
  for (const auto& [type, columns] : cases) {
    SCOPED_TRACE(fmt::format("{} columns, {}", columns, ir::name_of(type)));
    expect_compiled(every_operator(type, {2, 3, columns}), 1);
  }
  for (int op = 0; op <= static_cast<int>(executor::chain::Op::kWhere); ++op) {
    const std::string expression = operation(static_cast<executor::chain::Op>(op));
    const std::string call = expression.substr(0, expression.find('{'));
    EXPECT_NE(text_.find(call), std::string::npos) << expression;
  }
}

TEST_F(ChainSources, OfRandomStepsCompile) {
  for (unsigned seed = 0; seed < 10; ++seed) {
    for (const DataType type : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
      SCOPED_TRACE(seed);
      expect_compiled(test::random_chain(seed, type), 0);
    }
  }
}

// gate * sigmoid(gate) * up, in float32 between casts, as layer `layer` has it.
std::shared_ptr<const ir::Graph> gated(DataType type, int64_t rows, int64_t columns, int layer) {
  Built b;
  const auto input = [&](const char* name) {
    return b.graph->add_input(fmt::format("{}{}", name, layer), {type, {rows, columns}});
  };
  const ValueId gate = b.build.cast(input("gate"), DataType::kFloat32);
  const ValueId silu = b.build.binary("Mul", gate, b.build.unary("Sigmoid", gate));
  b.graph->add_output("y", b.build.binary("Mul", b.build.cast(silu, type), input("up")));
  return b.graph;
}

size_t count(const std::string& text, const std::string& word) {
  size_t found = 0;
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++found;
  return found;
}

// Two operands and a result of 16 bytes each, and nothing spilled.
TEST_F(ChainSources, MoveSixteenBytesAtOnce) {
  for (const DataType type : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
    const std::vector<Source> sources = sources_of(gated(type, 64, 512, 0));
    ASSERT_EQ(sources.size(), 1U);
    const std::vector<char> ptx = cuda::compile(device_text(sources[0].text), "compute_90");
    const std::string text(ptx.begin(), ptx.end());
    EXPECT_EQ(count(text, "ld.global"), 2U) << text;
    EXPECT_EQ(count(text, "ld.global.v4"), 2U);
    EXPECT_EQ(count(text, "st.global.v4"), 1U);
    EXPECT_EQ(count(text, ".local"), 0U);
  }
}

TEST_F(ChainSources, SayWhatNvrtcDoesNotTake) {
  try {
    cuda::compile("an error", kArchitecture);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(error.message().find("chain.cu(1): error"), std::string::npos) << error.message();
  }
}

// Layers have one source, of any number of rows.
TEST(ChainSource, IsTheSameForEqualChains) {
  const std::string text = sources_of(gated(DataType::kBFloat16, 64, 512, 0))[0].text;
  EXPECT_EQ(sources_of(gated(DataType::kBFloat16, 128, 512, 1))[0].text, text);
  EXPECT_NE(sources_of(gated(DataType::kFloat16, 64, 512, 0))[0].text, text);
}

}  // namespace
}  // namespace autosp::chains

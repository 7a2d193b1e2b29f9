// Every kernel of every device against the reference kernel of its operator: on the random graphs
// of one operator each that sharding rules are tested with, as they are and in 16 bits.
//
// The emulated device runs this project's own kernels on the host. What needs a device that is not
// there is skipped, and says so.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "executor/rank_device.h"
#include "executor/run.h"
#include "ir/builder.h"
#include "ir/rewriter.h"
#include "support/devices.h"
#include "support/emulated_device.h"
#include "support/operator_cases.h"
#include "support/run_graph.h"

namespace autosp::executor {
namespace {

using ir::DataType;
using ir::Graph;
using ir::Tensor;
using test::OperatorCase;
using test::Tensors;

constexpr unsigned kCases = 24;  // per operator and type

// What stays float32 beside values of 16 bits.
bool is_statistic(const Graph& graph, ValueId id) {
  const auto at = [&](const ir::Node& node, const std::vector<ValueId>& values, size_t from) {
    for (size_t k = from; k < values.size() && k < from + 2; ++k) {
      if (values[k] == id) return node.domain == ir::kAutospDomain || node.is("LayerNormalization");
    }
    return false;
  };
  for (const ir::Node& node : graph.nodes()) {
    if (node.op != "AttentionGrad" && at(node, node.outputs, 1)) return true;
    if (node.op == "AttentionGrad" && at(node, node.inputs, 5)) return true;
  }
  return false;
}

Tensor converted(const Tensor& tensor, DataType to) {
  Tensor result(ir::Type{to, tensor.shape()});
  const size_t size = ir::element_size(to);
  for (int64_t k = 0; k < tensor.num_elements(); ++k) {
    const Tensor one = Tensor::scalar(to, tensor.value_as_double(k));
    std::ranges::copy(one.bytes(), result.mutable_bytes() + static_cast<size_t>(k) * size);
  }
  return result;
}

// The case with its floats in another type.
OperatorCase in_type(const OperatorCase& given, DataType to) {
  OperatorCase result;
  std::map<ValueId, ValueId> now;
  const Graph& from = given.graph;
  const auto changes = [&](ValueId id) { return ir::is_floating(from.type(id).dtype); };
  const auto wanted = [&](ValueId id) { return is_statistic(from, id) ? DataType::kFloat32 : to; };
  const auto type = [&](ValueId id) {
    return changes(id) ? ir::Type{wanted(id), from.shape(id)} : from.type(id);
  };
  for (size_t k = 0; k < from.values().size(); ++k) {
    const ValueId id(k);
    const ir::Value& value = from.value(id);
    if (value.kind == ir::ValueKind::kInput) {
      now[id] = result.graph.add_input(value.name, type(id));
      const Tensor& feed = given.feeds.at(value.name);
      result.feeds[value.name] = changes(id) ? converted(feed, wanted(id)) : feed;
    } else if (value.kind == ir::ValueKind::kConstant) {
      now[id] =
          result.graph.add_constant(changes(id) ? converted(value.constant, to) : value.constant);
    }
  }
  for (const ir::Node& node : from.nodes()) {
    std::vector<ValueId> inputs;
    for (ValueId id : node.inputs) inputs.push_back(id ? now.at(id) : ValueId());
    std::vector<ir::Type> types;
    for (ValueId id : node.outputs) types.push_back(id ? type(id) : ir::Type{});
    const NodeId added =
        result.graph.add_node(node.op, inputs, types, node.attributes, node.domain);
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (node.outputs[k]) now[node.outputs[k]] = result.graph.node(added).outputs[k];
    }
    if (&node == &from.node(given.node)) result.node = added;
  }
  for (const ir::Output& output : from.outputs()) {
    result.graph.add_output(output.name, now.at(output.value));
  }
  return result;
}

double tolerance(DataType type) {
  if (type == DataType::kFloat16) return 4e-3;
  return type == DataType::kBFloat16 ? 3e-2 : 2e-5;
}

// The executor makes one product of it, of its own domain.
constexpr const char* kTransposedProduct = "TransposedProduct";

OperatorCase draw_transposed_product(unsigned seed) {
  test::CaseBuilder c(seed);
  const ir::Shape batch = c.shape(0, 2);
  const int64_t m = c.extent();
  const int64_t k = c.extent();
  const int64_t n = c.extent();
  const auto operand = [&](int64_t rows, int64_t columns, bool transposed) {
    ir::Shape shape = batch;
    shape.insert(shape.end(), {transposed ? columns : rows, transposed ? rows : columns});
    const ValueId stored = c.floats(shape);
    if (!transposed) return stored;
    std::vector<int64_t> permutation(shape.size());
    std::iota(permutation.begin(), permutation.end(), 0);
    std::swap(permutation[shape.size() - 2], permutation[shape.size() - 1]);
    return c.build().transpose(stored, permutation);
  };
  const ValueId a = operand(m, k, seed % 3 != 0);
  const ValueId b = operand(k, n, seed % 3 != 1);
  c.test("MatMul", {a, b});
  return std::move(c).finish();
}

// The executor makes one product of it all (executor/absorb_epilogues.h).
constexpr const char* kFusedProduct = "FusedProduct";

ValueId draw_product(test::CaseBuilder& c, const ir::Shape& batch, int64_t columns) {
  const int64_t rows = c.extent();
  const int64_t terms = c.extent();
  if (batch.empty() && c.coin()) {
    const bool transposed = c.coin();
    const ir::Shape b = transposed ? ir::Shape{columns, terms} : ir::Shape{terms, columns};
    return c.build().node("Gemm", {c.floats({rows, terms}), c.floats(b), c.floats({columns})},
                          {DataType::kFloat32, {rows, columns}},
                          {{"alpha", 0.5F}, {"transB", int64_t{transposed}}});
  }
  ir::Shape a = batch;
  a.insert(a.end(), {rows, terms});
  ir::Shape b = c.coin() ? batch : ir::Shape();
  b.insert(b.end(), {terms, columns});
  return c.build().matmul(c.floats(a), c.floats(b));
}

OperatorCase draw_fused_product(unsigned seed) {
  test::CaseBuilder c(seed);
  const ir::Shape batch = c.shape(0, 2);
  const int64_t columns = c.extent();
  ValueId y = draw_product(c, batch, columns);
  const ir::Shape shape = c.build().shape(y);
  if (c.coin()) y = c.build().reshape(y, {ir::num_elements(shape) / columns, columns});
  if (c.coin()) y = c.build().binary("Add", c.floats(c.build().shape(y)), y);
  if (c.coin()) y = c.build().binary("Add", y, c.floats({columns}));
  c.test("Relu", {y});
  return std::move(c).finish();
}

OperatorCase draw_case(const std::string& op, unsigned seed) {
  if (op == kFusedProduct) return draw_fused_product(seed);
  if (op == kTransposedProduct) return draw_transposed_product(seed);
  // Gradients are drawn in float64, which no kernel of a device takes.
  OperatorCase drawn = test::draw_operator_case(op, seed);
  return op == "autosp::AttentionGrad" ? in_type(drawn, DataType::kFloat32) : std::move(drawn);
}

std::vector<std::string> operators() {
  std::vector<std::string> names = test::operators_with_cases();
  names.emplace_back(kTransposedProduct);
  names.emplace_back(kFusedProduct);
  return names;
}

// An index is among their floats, or float32 is all that the reference draws.
bool is_of_one_type(const std::string& op) {
  return op == "OneHot" || op == "autosp::RandomUniform";
}

// Gradients that are zero in exact arithmetic are rounding, of the size that the others leave: all
// are held against the largest entry of any.
void expect_close_together(const Tensors& got, const Tensors& want, double tolerance) {
  double largest = 0;
  for (const auto& [name, tensor] : want) {
    for (int64_t k = 0; k < tensor.num_elements(); ++k) {
      const double entry = std::abs(tensor.value_as_double(k));
      if (std::isfinite(entry)) largest = std::max(largest, entry);
    }
  }
  for (const auto& [name, tensor] : want) {
    for (int64_t k = 0; k < tensor.num_elements(); ++k) {
      const double a = got.at(name).value_as_double(k);
      const double b = tensor.value_as_double(k);
      const bool equal = std::isnan(a) ? std::isnan(b) : std::abs(a - b) <= tolerance * largest;
      ASSERT_TRUE(equal) << name << ", element " << k << ": " << a << " instead of " << b;
    }
  }
}

// The outputs of a graph on a device.
Arrays run_on(const std::shared_ptr<Backend>& backend, const Graph& graph, const Arrays& feeds) {
  const RunOptions options{.threads_per_rank = 1, .backend = backend};
  return run_in_threads({std::make_shared<const Graph>(graph)}, {feeds}, options).ranks[0].outputs;
}

struct Parameters {
  std::string device;
  std::string op;
};

class DeviceKernels : public testing::TestWithParam<Parameters> {
 protected:
  void check(const OperatorCase& drawn, const std::shared_ptr<Backend>& backend, DataType type) {
    const Arrays got = run_on(backend, drawn.graph, drawn.feeds);
    const Tensors want = test::run_graph(drawn.graph, drawn.feeds);
    if (GetParam().op == "autosp::AttentionGrad") {
      expect_close_together(got, want, tolerance(type));
    } else {
      test::expect_close_or_nan(got, want, tolerance(type));
    }
  }
};

TEST_P(DeviceKernels, AgreesWithTheReference) {
  const test::FoundDevice found = test::find_device(GetParam().device);
  if (found.backend == nullptr) GTEST_SKIP() << found.reason;
  for (unsigned seed = 0; seed < kCases; ++seed) {
    SCOPED_TRACE(fmt::format("case {}", seed));
    const OperatorCase drawn = draw_case(GetParam().op, seed);
    check(drawn, found.backend, DataType::kFloat32);
    if (is_of_one_type(GetParam().op)) continue;
    if (GetParam().op == kFusedProduct) {
      check(in_type(drawn, DataType::kFloat64), found.backend, DataType::kFloat64);
    }
    for (const DataType type : {DataType::kFloat16, DataType::kBFloat16}) {
      SCOPED_TRACE(ir::name_of(type));
      check(in_type(drawn, type), found.backend, type);
    }
  }
}

std::vector<Parameters> all_parameters() {
  std::vector<Parameters> parameters;
  for (const std::string& device : test::device_names()) {
    for (const std::string& op : operators()) parameters.push_back({device, op});
  }
  return parameters;
}

INSTANTIATE_TEST_SUITE_P(Operators, DeviceKernels, testing::ValuesIn(all_parameters()),
                         [](const auto& parameters) {
                           std::string name = parameters.param.device + "_" + parameters.param.op;
                           std::ranges::replace(name, ':', '_');
                           return name;
                         });

// --- Lines longer than a block has threads, of few values, so that many are equal.

OperatorCase draw_long_line(const std::string& op, unsigned seed, DataType type) {
  test::CaseBuilder c(seed);
  const int64_t extent = c.one_of<int64_t>({127, 128, 129, 300, 1000});
  const ir::Shape shape = {2, extent, c.integer(1, 3)};
  ValueId x = c.integers(shape, -2, 2);
  if (type != DataType::kInt64) x = c.build().cast(x, type);
  std::vector<ValueId> operands = {x};
  ir::Attributes attributes;
  if (op == "CumSum") {
    operands.push_back(c.build().scalar(DataType::kInt64, 1));
    attributes = {{"exclusive", int64_t{c.coin()}}, {"reverse", int64_t{c.coin()}}};
  } else if (op == "TopK") {
    operands.push_back(c.build().int64s({c.one_of<int64_t>({1, 7, extent})}));
    attributes = {{"axis", int64_t{1}}, {"largest", int64_t{c.coin()}}};
  } else if (op == "ReduceLogSumExp") {
    operands.push_back(c.build().int64s({1}));
  } else {
    attributes = {{"axis", int64_t{1}}, {"select_last_index", int64_t{c.coin()}}};
  }
  c.test(op, operands, attributes, op == "TopK" ? 2 : 1);
  return std::move(c).finish();
}

class LongLines : public testing::TestWithParam<std::string> {};

TEST_P(LongLines, AgreeWithTheReference) {
  const test::FoundDevice found = test::find_device(GetParam());
  if (found.backend == nullptr) GTEST_SKIP() << found.reason;
  for (const char* op : {"CumSum", "TopK", "ArgMax", "ArgMin", "ReduceLogSumExp"}) {
    for (const DataType type :
         {DataType::kInt64, DataType::kFloat32, DataType::kFloat64, DataType::kFloat16}) {
      if (type == DataType::kInt64 && op == std::string("ReduceLogSumExp")) continue;
      for (unsigned seed = 0; seed < 6; ++seed) {
        SCOPED_TRACE(fmt::format("{} of {}, case {}", op, ir::name_of(type), seed));
        const OperatorCase drawn = draw_long_line(op, seed, type);
        test::expect_close(run_on(found.backend, drawn.graph, drawn.feeds),
                           test::run_graph(drawn.graph, drawn.feeds),
                           type == DataType::kFloat16 ? 1e-2 : 1e-6);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, LongLines, testing::ValuesIn(test::device_names()),
                         [](const auto& parameters) { return parameters.param; });

TEST_P(LongLines, OfAnySizeHaveLogarithmsOfTheirSums) {
  const test::FoundDevice found = test::find_device(GetParam());
  if (found.backend == nullptr) GTEST_SKIP() << found.reason;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const std::vector<float>& line : {std::vector<float>{1000, 999, -1000},
                                         {-1000, -1001, -1002},
                                         {-kInfinity, -kInfinity, -kInfinity},
                                         {0, kInfinity, -kInfinity},
                                         {-kInfinity, 1, 2}}) {
    Graph graph;
    ir::Builder build(graph);
    const ValueId x = graph.add_input("x", {DataType::kFloat32, {3}});
    graph.add_output("y", build.node("ReduceLogSumExp", {x}, {DataType::kFloat32, {1}}));
    const Arrays feeds = {{"x", Tensor::from_values<float>({3}, line)}};
    const Arrays got = run_on(found.backend, graph, feeds);
    EXPECT_FLOAT_EQ(static_cast<float>(got.at("y").value_as_double(0)),
                    static_cast<float>(test::run_graph(graph, feeds).at("y").value_as_double(0)));
  }
}

// --- Integers of either sign, up to the largest of both.

template <typename T>
void check_integers(const std::shared_ptr<Backend>& backend, DataType type) {
  constexpr T kLeast = std::numeric_limits<T>::min();
  const std::vector<T> x = {7, -7, 7, -7, kLeast, kLeast, 0, 5};
  const std::vector<T> y = {3, 3, -3, -3, -1, 2, -1, kLeast};
  const ir::Shape shape = {static_cast<int64_t>(x.size())};
  const auto run = [&](const char* op, bool is_binary, const ir::Attributes& attributes) {
    Graph graph;
    ir::Builder build(graph);
    std::vector<ValueId> operands = {graph.add_input("x", {type, shape})};
    Arrays feeds = {{"x", Tensor::from_values<T>(shape, x)}};
    if (is_binary) {
      operands.push_back(graph.add_input("y", {type, shape}));
      feeds["y"] = Tensor::from_values<T>(shape, y);
    }
    graph.add_output("z", build.node(op, operands, {type, shape}, attributes));
    const Tensor want = test::run_graph(graph, feeds).at("z");
    const Tensor got = run_on(backend, graph, feeds).at("z");
    EXPECT_TRUE(std::ranges::equal(got.bytes(), want.bytes())) << op;
  };
  for (const char* op : {"Div", "Mod", "BitwiseAnd", "BitwiseOr", "BitwiseXor"}) run(op, true, {});
  run("Mod", true, {{"fmod", int64_t{1}}});
  for (const char* op : {"Neg", "Abs", "Sign", "BitwiseNot"}) run(op, false, {});
}

class DeviceIntegers : public testing::TestWithParam<std::string> {};

TEST_P(DeviceIntegers, GiveWhatTheReferenceGives) {
  const test::FoundDevice found = test::find_device(GetParam());
  if (found.backend == nullptr) GTEST_SKIP() << found.reason;
  check_integers<int64_t>(found.backend, DataType::kInt64);
  check_integers<int32_t>(found.backend, DataType::kInt32);
}

INSTANTIATE_TEST_SUITE_P(Devices, DeviceIntegers, testing::ValuesIn(test::device_names()),
                         [](const auto& parameters) { return parameters.param; });

TEST_P(LongLines, WithoutNumbersAreOrderedAlike) {
  const test::FoundDevice found = test::find_device(GetParam());
  if (found.backend == nullptr) GTEST_SKIP() << found.reason;
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const std::vector<float>& line :
       {std::vector<float>{kNaN, 1, 2}, {1, kNaN, 2}, {2, 1, kNaN}, {kNaN, kNaN, kNaN}}) {
    for (const char* op : {"ArgMax", "ArgMin"}) {
      Graph graph;
      ir::Builder build(graph);
      const ValueId x = graph.add_input("x", {DataType::kFloat32, {3}});
      graph.add_output("y", build.node(op, {x}, {DataType::kInt64, {1}}));
      const Arrays feeds = {{"x", Tensor::from_values<float>({3}, line)}};
      EXPECT_EQ(run_on(found.backend, graph, feeds).at("y").value_as_double(0),
                test::run_graph(graph, feeds).at("y").value_as_double(0));
    }
  }
}

// Rows of operators without a case, and why.
const std::set<std::string_view> kWithoutCase = {
    "AllReduce",     "AllGather",
    "ReduceScatter", "AllToAll",          // run_on_device_test.cpp
    "CastLike",      "RMSNormalization",  // onnx_node_tests.cpp
    "Chain",                              // device_chains_test.cpp
    "Adagrad",       "Adam",
    "Momentum",  // device_optimizers_test.cpp
};

TEST(DeviceKernelTable, EveryRowIsUsedByACase) {
  const test::EmulatedBackend backend;
  const KernelTable kernels = device_kernels(backend);
  std::set<std::pair<std::string, std::string>> used;
  for (const std::string& op : operators()) {
    for (unsigned seed = 0; seed < kCases; ++seed) {
      const OperatorCase drawn = draw_case(op, seed);
      const auto graph = std::make_shared<const Graph>(drawn.graph);
      const Program program = compile(graph, {.kernels = &kernels, .share_memory = false});
      for (size_t k = 0; k < program.graph().nodes().size(); ++k) {
        const ir::Node& node = program.graph().nodes()[k];
        if (!program.kernel(k).on_host) used.insert({node.domain, node.op});
      }
    }
  }
  for (const KernelRow& row : kernels.rows()) {
    if (kWithoutCase.contains(row.op)) continue;
    EXPECT_TRUE(used.contains({std::string(row.domain), std::string(row.op)}))
        << row.domain << " " << row.op << " has a row that no case reaches";
  }
}

// What falls back to the host on a device with all of this project's kernels: operators of which
// training graphs of transformers have none, or few elements.
TEST(DeviceKernelTable, WhatHasNoKernelIsListed) {
  const test::EmulatedBackend backend;
  const KernelTable kernels = device_kernels(backend);
  std::set<std::string> rows;
  for (const KernelRow& row : kernels.rows()) rows.insert(std::string(row.op));
  std::string missing;
  for (const std::string& op : test::operators_with_cases()) {
    const std::string name = op.substr(op.rfind(':') + 1);
    if (!rows.contains(name)) missing += name + " ";
  }
  std::cout << "on the host: " << missing << "\n";
  for (const char* op : {"MatMul", "Gemm", "Attention", "AttentionGrad", "Softmax", "LogSoftmax",
                         "LayerNormalization", "ReduceSum", "Gather", "ScatterND",
                         "ScatterElements", "Where", "Transpose"}) {
    EXPECT_TRUE(rows.contains(op)) << op;
  }
}

}  // namespace
}  // namespace autosp::executor

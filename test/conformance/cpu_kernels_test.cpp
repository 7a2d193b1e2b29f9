// Every CPU kernel against the reference kernel of its operator, over shapes with and without full
// vectors, empty ones, broadcasting and every layout the rows accept.
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "executor/run.h"
#include "ir/builder.h"
#include "support/run_graph.h"

namespace autosp::executor {
namespace {

using ir::DataType;
using ir::Shape;
using ir::Tensor;
using ir::Type;

// A graph of one node, whose operands are inputs or constants; or of more, of which the executor
// makes one of its own.
struct KernelCase {
  std::string name;
  std::string op;
  std::shared_ptr<const ir::Graph> graph;
  double tolerance = 2e-6;  // of the largest entry
  bool fuse = false;
};

KernelCase make_case(const std::string& name, const std::string& op,
                     const std::vector<Type>& inputs, std::vector<Tensor> constants,
                     const std::vector<Type>& results, ir::Attributes attributes = {},
                     double tolerance = 2e-6) {
  auto graph = std::make_shared<ir::Graph>();
  std::vector<ValueId> operands;
  for (const Type& type : inputs) {
    operands.push_back(graph->add_input(fmt::format("x{}", operands.size()), type));
  }
  for (Tensor& constant : constants) operands.push_back(graph->add_constant(std::move(constant)));
  const NodeId id = graph->add_node(op, operands, results, std::move(attributes));
  for (size_t k = 0; k < results.size(); ++k) {
    graph->add_output(fmt::format("y{}", k), graph->node(id).outputs[k]);
  }
  return {name, op, graph, tolerance};
}

RunOptions options_of(const KernelCase& kernel_case) {
  RunOptions options;
  options.compile.fuse = kernel_case.fuse;
  return options;
}

Type floats(Shape shape) { return {DataType::kFloat32, std::move(shape)}; }

void add_matmuls(std::vector<KernelCase>& cases) {
  const auto add = [&](const std::string& name, Shape a, Shape b, Shape c, DataType dtype,
                       double tolerance) {
    cases.push_back(
        make_case(name, "MatMul", {{dtype, a}, {dtype, b}}, {}, {{dtype, c}}, {}, tolerance));
  };
  for (const auto& [type_name, dtype, tolerance] :
       {std::tuple("F32", DataType::kFloat32, 1e-6), std::tuple("F64", DataType::kFloat64, 1e-14),
        std::tuple("F16", DataType::kFloat16, 1e-3),
        std::tuple("BF16", DataType::kBFloat16, 8e-3)}) {
    const std::string suffix = type_name;
    add("Matrices" + suffix, {5, 7}, {7, 3}, {5, 3}, dtype, tolerance);
    add("ManyByOne" + suffix, {2, 3, 5, 7}, {7, 3}, {2, 3, 5, 3}, dtype, tolerance);
    add("OneByMany" + suffix, {5, 7}, {4, 7, 3}, {4, 5, 3}, dtype, tolerance);
    add("Broadcast" + suffix, {2, 1, 5, 7}, {3, 7, 3}, {2, 3, 5, 3}, dtype, tolerance);
    add("LeadingOne" + suffix, {1, 5, 7}, {1, 7, 3}, {1, 5, 3}, dtype, tolerance);
    add("BothWays" + suffix, {2, 1, 5, 7}, {1, 3, 7, 2}, {2, 3, 5, 2}, dtype, tolerance);
    add("VectorLeft" + suffix, {7}, {2, 7, 3}, {2, 3}, dtype, tolerance);
    add("VectorRight" + suffix, {2, 5, 7}, {7}, {2, 5}, dtype, tolerance);
    add("Vectors" + suffix, {7}, {7}, {}, dtype, tolerance);
    add("NothingContracted" + suffix, {5, 0}, {0, 3}, {5, 3}, dtype, tolerance);
    add("NoRows" + suffix, {0, 7}, {7, 3}, {0, 3}, dtype, tolerance);
  }
}

void add_gemms(std::vector<KernelCase>& cases) {
  for (bool ta : {false, true}) {
    for (bool tb : {false, true}) {
      for (const Shape& c : {Shape{}, Shape{1}, Shape{3}, Shape{5, 1}, Shape{5, 3}}) {
        for (DataType dtype : {DataType::kFloat32, DataType::kFloat64}) {
          std::vector<Type> inputs = {{dtype, ta ? Shape{7, 5} : Shape{5, 7}},
                                      {dtype, tb ? Shape{3, 7} : Shape{7, 3}}};
          if (!c.empty()) inputs.push_back({dtype, c});
          cases.push_back(make_case(
              fmt::format("Gemm{}{}_{}_{}", ta ? "T" : "N", tb ? "T" : "N", fmt::join(c, "x"),
                          ir::name_of(dtype)),
              "Gemm", inputs, {}, {{dtype, {5, 3}}},
              {{"transA", int64_t{ta}}, {"transB", int64_t{tb}}, {"alpha", 0.5F}, {"beta", 2.0F}}));
        }
      }
    }
  }
  cases.push_back(make_case("GemmNothingContracted", "Gemm",
                            {floats({5, 0}), floats({0, 3}), floats({3})}, {}, {floats({5, 3})},
                            {{"beta", 2.0F}}));
}

void add_rows(std::vector<KernelCase>& cases) {
  for (int64_t count : {0, 1, 3, 16, 37, 130}) {
    const Shape shape = {3, count};
    const std::string suffix = std::to_string(count);
    for (const char* op : {"Exp", "Sigmoid", "Tanh"}) {
      cases.push_back(make_case(op + suffix, op, {floats(shape)}, {}, {floats(shape)}));
    }
    cases.push_back(make_case("Gelu" + suffix, "Gelu", {floats(shape)}, {}, {floats(shape)},
                              {{"approximate", std::string("tanh")}}));
    for (const char* op : {"Softmax", "LogSoftmax"}) {
      for (int64_t axis : {-1, 1, 0}) {
        cases.push_back(make_case(fmt::format("{}{}Axis{}", op, suffix, axis + 1), op,
                                  {floats(shape)}, {}, {floats(shape)}, {{"axis", axis}}));
      }
    }
    if (count == 0) continue;
    for (bool bias : {false, true}) {
      std::vector<Type> inputs = {floats({2, 3, count}), floats({count})};
      if (bias) inputs.push_back(floats({count}));
      cases.push_back(make_case(
          fmt::format("LayerNormalization{}{}", suffix, bias ? "Bias" : ""), "LayerNormalization",
          inputs, {}, {floats({2, 3, count}), floats({2, 3, 1}), floats({2, 3, 1})}, {}, 1e-5));
    }
  }
  cases.push_back(make_case("LayerNormalizationTwoAxes", "LayerNormalization",
                            {floats({2, 3, 5}), floats({3, 5}), floats({5})}, {},
                            {floats({2, 3, 5})}, {{"axis", int64_t{1}}}, 1e-5));
}

void add_sums(std::vector<KernelCase>& cases) {
  const Shape shape = {3, 4, 5, 37};
  for (const std::vector<int64_t>& axes : std::vector<std::vector<int64_t>>{
           {0}, {-1}, {1}, {0, 1}, {1, 2}, {2, 3}, {0, 1, 2}, {0, 1, 2, 3}, {0, 2}, {-1, 0}}) {
    Shape result = shape;
    for (int64_t axis : axes) result[ir::normalize_axis(axis, 4)] = 1;
    cases.push_back(make_case(fmt::format("ReduceSum{}", cases.size()), "ReduceSum",
                              {floats(shape)}, {Tensor::int64s(axes)}, {floats(result)}));
  }
  cases.push_back(
      make_case("ReduceSumAll", "ReduceSum", {floats(shape)}, {}, {floats({1, 1, 1, 1})}));
  cases.push_back(make_case("ReduceSumNone", "ReduceSum", {floats(shape)}, {}, {floats(shape)},
                            {{"noop_with_empty_axes", int64_t{1}}}));
  cases.push_back(make_case("ReduceSumOfNothing", "ReduceSum", {floats({0, 5})},
                            {Tensor::int64s({0})}, {floats({1, 5})}));
}

void add_transposes(std::vector<KernelCase>& cases) {
  const std::vector<std::pair<Shape, std::vector<int64_t>>> transposes = {
      {{5, 7}, {1, 0}},
      {{33, 50}, {1, 0}},
      {{2, 3, 4, 5}, {0, 1, 3, 2}},
      {{2, 3, 4, 5}, {3, 1, 2, 0}},
      {{2, 3, 4, 5}, {3, 2, 1, 0}},
      {{2, 3, 4, 5}, {0, 2, 3, 1}},
      {{2, 3, 4, 5}, {0, 2, 1, 3}},
      {{1, 20, 1, 40}, {0, 3, 2, 1}},
      {{4, 0, 3}, {2, 0, 1}},
      {{2, 3, 4, 5, 6}, {4, 1, 2, 3, 0}}};
  for (const auto& [shape, permutation] : transposes) {
    Shape result;
    for (int64_t axis : permutation) result.push_back(shape[static_cast<size_t>(axis)]);
    for (DataType dtype : {DataType::kFloat32, DataType::kInt64, DataType::kBFloat16}) {
      cases.push_back(make_case(fmt::format("Transpose{}", cases.size()), "Transpose",
                                {{dtype, shape}}, {}, {{dtype, result}}, {{"perm", permutation}}));
    }
  }
  cases.push_back(
      make_case("TransposeReversed", "Transpose", {floats({2, 3, 4})}, {}, {floats({4, 3, 2})}));
}

// MatMul of transposes becomes the executor's own.
void add_transposed_matmuls(std::vector<KernelCase>& cases) {
  for (DataType dtype : {DataType::kFloat32, DataType::kFloat64}) {
    for (const auto& [ta, tb] : {std::pair(false, true), {true, false}, {true, true}}) {
      auto graph = std::make_shared<ir::Graph>();
      ir::Builder build(*graph);
      const auto operand = [&](const char* name, Shape shape, bool transposed) {
        if (!transposed) return graph->add_input(name, {dtype, shape});
        std::swap(shape[1], shape[2]);
        return build.transpose(graph->add_input(name, {dtype, shape}), {0, 2, 1});
      };
      const ValueId a = operand("x0", {2, 5, 7}, ta);
      const ValueId b = operand("x1", {2, 7, 3}, tb);
      graph->add_output("y0", build.matmul(a, b));
      cases.push_back(
          {fmt::format("MatMul{}{}_{}", ta ? "T" : "N", tb ? "T" : "N", ir::name_of(dtype)),
           "MatMul", graph});
    }
  }
}

// One case for both rows; attention_kernels_test.cpp has all others.
void add_attention(std::vector<KernelCase>& cases) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const Type whole = floats({2, 3, 20, 16});
  const Type rows = floats({2, 3, 20});
  std::vector<ValueId> qkv;
  for (int k = 0; k < 3; ++k) qkv.push_back(graph->add_input(fmt::format("x{}", k), whole));
  const ir::Attributes attributes = {{"scale", 0.25F}};
  const std::string domain(ir::kAutospDomain);
  const auto forward =
      build.node("Attention", qkv, std::vector<Type>{whole, rows, rows}, attributes, domain);
  std::vector<ValueId> operands = {graph->add_input("x3", whole)};
  operands.insert(operands.end(), qkv.begin(), qkv.end());
  operands.insert(operands.end(), forward.begin(), forward.end());
  const auto gradients = build.node("AttentionGrad", operands,
                                    std::vector<Type>{whole, whole, whole}, attributes, domain);
  graph->add_output("y0", forward[0]);
  for (size_t k = 0; k < 3; ++k) graph->add_output(fmt::format("y{}", k + 1), gradients[k]);
  cases.push_back({"Attention", "Attention", graph, 2e-5});
}

void add_chains(std::vector<KernelCase>& cases) {
  auto graph = std::make_shared<ir::Graph>();
  ir::Builder build(*graph);
  const ValueId x = graph->add_input("x0", floats({3, 130}));
  graph->add_output("y0", build.binary("Mul", build.unary("Sigmoid", x), x));
  cases.push_back({.name = "Chain", .op = "Chain", .graph = graph, .fuse = true});
}

std::vector<KernelCase> all_cases() {
  std::vector<KernelCase> cases;
  add_matmuls(cases);
  add_gemms(cases);
  add_rows(cases);
  add_sums(cases);
  add_transposes(cases);
  add_transposed_matmuls(cases);
  add_attention(cases);
  add_chains(cases);
  return cases;
}

class CpuKernels : public testing::TestWithParam<KernelCase> {};

TEST_P(CpuKernels, AgreesWithTheReference) {
  const auto& graph = GetParam().graph;
  const Arrays feeds = test::random_feeds(*graph);
  const RunResult result = run_in_threads({graph}, {feeds}, options_of(GetParam()));
  test::expect_close(result.ranks[0].outputs, test::run_graph(*graph, feeds), GetParam().tolerance);
}

INSTANTIATE_TEST_SUITE_P(Rows, CpuKernels, testing::ValuesIn(all_cases()),
                         [](const auto& parameters) { return parameters.param.name; });

TEST(CpuKernelTable, EveryRowIsUsedByACase) {
  std::set<KernelFunction> used;
  for (const KernelCase& kernel_case : all_cases()) {
    const Program program = compile(kernel_case.graph, options_of(kernel_case).compile);
    for (size_t k = 0; k < program.graph().nodes().size(); ++k) {
      used.insert(program.kernel(k).function);
    }
  }
  const std::set<std::string_view> collectives = {"AllReduce", "AllGather", "ReduceScatter",
                                                  "AllToAll"};
  for (const KernelRow& row : cpu_kernels().rows()) {
    const bool collective = row.domain == ir::kAutospDomain && collectives.contains(row.op);
    if (collective) continue;  // the transports' suite
    EXPECT_TRUE(used.contains(row.function))
        << row.domain << " " << row.op << " has a row that no case reaches";
  }
}

// exp, sigmoid and tanh over their whole range, and where they must not fail.
TEST(CpuKernels, TranscendentalsAtTheirEdges) {
  std::vector<float> x = {0.0F, -0.0F, INFINITY, -INFINITY, NAN, 1e30F, -1e30F, 88.8F, -103.0F};
  for (float v = -90; v < 90; v += 0.037F) x.push_back(v);
  for (float v = 1e-30F; v < 1; v *= 3) x.insert(x.end(), {v, -v});
  const auto count = static_cast<int64_t>(x.size());
  const Arrays feeds = {{"x0", Tensor::from_values<float>({count}, x)}};
  const std::vector<std::pair<std::string, double (*)(double)>> functions = {
      {"Exp", [](double v) { return std::exp(v); }},
      {"Sigmoid", [](double v) { return 1 / (1 + std::exp(-v)); }},
      {"Tanh", [](double v) { return std::tanh(v); }}};
  for (const auto& [op, exact] : functions) {
    const auto graph = make_case(op, op, {floats({count})}, {}, {floats({count})}).graph;
    const Tensor y = run_in_threads({graph}, {feeds}).ranks[0].outputs.at("y0");
    for (int64_t i = 0; i < count; ++i) {
      const double want = exact(x[static_cast<size_t>(i)]);
      const double got = y.value_as_double(i);
      if (std::isnan(want)) {
        EXPECT_TRUE(std::isnan(got)) << op;
      } else if (want > 3.4028235e38) {
        EXPECT_EQ(got, INFINITY) << op;
      } else {
        EXPECT_NEAR(got, want, 4e-7 * std::abs(want) + 2e-38)
            << op << " of " << x[static_cast<size_t>(i)];
      }
    }
  }
}

// A fully masked row has no softmax; the CPU kernel and the reference say so alike.
TEST(CpuKernels, SoftmaxOfARowOfMinusInfinityIsNotANumber) {
  const auto graph = make_case("s", "Softmax", {floats({1, 20})}, {}, {floats({1, 20})}).graph;
  const Arrays feeds = {{"x0", Tensor::filled(floats({1, 20}), -INFINITY)}};
  const Tensor y = run_in_threads({graph}, {feeds}).ranks[0].outputs.at("y0");
  EXPECT_TRUE(std::isnan(y.value_as_double(0)));
  EXPECT_TRUE(std::isnan(test::run_graph(*graph, feeds).at("y0").value_as_double(0)));
}

}  // namespace
}  // namespace autosp::executor

// Graphs of several lengths as one graph: forms, arithmetic, and what cannot stay open.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <numeric>

#include "base/error.h"
#include "ir/builder.h"
#include "onnx/model.h"
#include "transforms/open_length/join_lengths.h"
#include "transforms/open_length/same_graph.h"
#include "transforms/spmd/thread_tokens.h"

namespace autosp::transforms {
namespace {

using ir::DataType;
using ir::Graph;
using ir::Shape;
using ir::Tensor;
using testing::HasSubstr;

const OpenLength kOpen{.dim = "seq", .multiple = 4};
const std::vector<int64_t> kUnits = {8, 9, 11, 17, 2};

TEST(LengthForm, FitsTheLowestDegreeThatHolds) {
  const std::vector<int64_t> units = {4, 5, 7, 9};
  const auto of = [&](auto&& value) {
    std::vector<int64_t> values;
    for (int64_t n : units) values.push_back(value(n));
    return fit(units, values);
  };
  EXPECT_EQ(of([](int64_t) { return 7; }), (LengthForm{.constant = 7}));
  EXPECT_EQ(of([](int64_t n) { return 3 * n - 1; }), (LengthForm{.constant = -1, .linear = 3}));
  EXPECT_EQ(of([](int64_t n) { return 2 * n * n - n + 5; }),
            (LengthForm{.constant = 5, .linear = -1, .quadratic = 2}));
  EXPECT_EQ(of([](int64_t n) { return n * n * n; }), std::nullopt);
  EXPECT_EQ(of([](int64_t n) { return n / 2; }), std::nullopt);
  EXPECT_EQ(of([](int64_t n) { return std::min<int64_t>(n, 8); }), std::nullopt);
}

// Two points make a line of anything: one more has to agree.
TEST(LengthForm, NeedsMoreValuesThanItsDegree) {
  EXPECT_EQ(fit(std::vector<int64_t>{4, 5}, std::vector<int64_t>{8, 10}), std::nullopt);
  EXPECT_EQ(fit(std::vector<int64_t>{4, 5, 6}, std::vector<int64_t>{16, 25, 36}), std::nullopt);
}

TEST(LengthForm, ReadsAsAFormula) {
  EXPECT_EQ(to_string({.constant = 3}, kOpen), "3");
  EXPECT_EQ(to_string({.linear = 1}, kOpen), "seq/4");
  EXPECT_EQ(to_string({.constant = 1, .linear = 6}, kOpen), "3*seq/2+1");
  EXPECT_EQ(to_string({.constant = -1, .linear = 4}, kOpen), "seq-1");
  EXPECT_EQ(to_string({.quadratic = 4}, kOpen), "seq*seq/4");
  EXPECT_EQ(to_string({.constant = 2, .linear = -1}, kOpen), "-seq/4+2");
}

// A rank's graph at n units: 4n + 1 tokens come in.
using Make = std::function<void(ir::Builder& build, ValueId x, int64_t n)>;

Graph graph_at(const Make& make, int64_t n) {
  Graph graph;
  ir::Builder build(graph);
  const ValueId x = graph.add_input("x", {DataType::kFloat32, {2, 4 * n + 1}});
  make(build, x, n);
  ir::verify(graph);
  return graph;
}

OpenGraph joined(const std::vector<Graph>& graphs) {
  std::vector<GraphAtLength> at;
  for (size_t k = 0; k < graphs.size(); ++k) at.push_back({kUnits[k], &graphs[k]});
  return join_lengths(at, kOpen);
}

std::vector<Graph> graphs_of(const Make& make) {
  std::vector<Graph> graphs;
  for (int64_t n : kUnits) graphs.push_back(graph_at(make, n));
  return graphs;
}

// Joined, written, and read back at every length, also such that were not compared.
void expect_every_length_back(const Make& make) {
  const OpenGraph open = joined(graphs_of(make));
  const auto folder = std::filesystem::path(testing::TempDir());
  const auto file = folder / fmt::format("open_length_{}.onnx", ::getpid());
  onnx_io::ExportOptions options;
  options.dim_name = [&](ValueId value, size_t axis) {
    const LengthForm& form = open.shapes[value.index()][axis];
    return form.is_constant() ? std::string() : to_string(form, kOpen);
  };
  onnx_io::export_model(open.graph, file, options);
  for (int64_t n : {1, 2, 3, 8, 17, 100}) {
    SCOPED_TRACE(n);
    const Graph read = onnx_io::import_model(file, {.input_shapes = {{"x", {2, 4 * n + 1}}}});
    const Graph expected = onnx_io::through_file(graph_at(make, n), folder);
    EXPECT_EQ(first_difference(expected, read), std::nullopt);
  }
  std::filesystem::remove(file);
}

TEST(JoinLengths, ShapesAndBoundsFollowTheLength) {
  expect_every_length_back([](ir::Builder& build, ValueId x, int64_t n) {
    const ValueId part = build.slice(x, 1, n, 3 * n + 1);
    const ValueId square =
        build.matmul(build.reshape(part, {2 * n + 1, 2}), build.reshape(part, {2, 2 * n + 1}));
    build.graph().add_output("y", build.reshape(square, {(2 * n + 1) * (2 * n + 1)}));
  });
}

// A mean's divisor, a fill, positions, an index grid of two axes.
TEST(JoinLengths, ConstantsFollowTheLength) {
  expect_every_length_back([](ir::Builder& build, ValueId x, int64_t n) {
    const int64_t tokens = 4 * n + 1;
    const auto constant = [&](Tensor tensor) { return build.constant(std::move(tensor)); };
    std::vector<int64_t> grid(static_cast<size_t>(2 * tokens));
    for (size_t k = 0; k < grid.size(); ++k) {
      grid[k] = 5 + static_cast<int64_t>(k) / tokens * 3 * n + static_cast<int64_t>(k) % tokens * 2;
    }
    ValueId y = build.binary(
        "Mul", x, constant(Tensor::scalar(DataType::kFloat32, 1.0 / static_cast<double>(tokens))));
    y = build.binary("Div", y, constant(Tensor::scalar(DataType::kFloat32, 10.0 * n)));
    y = build.binary("Add", y, constant(Tensor::filled({DataType::kFloat32, {tokens}}, 0.25)));
    const ValueId indices =
        constant(Tensor::from_values(Shape{2, tokens}, std::span<const int64_t>(grid)));
    y = build.binary("Add", y, build.cast(indices, DataType::kFloat32));
    build.graph().add_output("y", y);
  });
}

// Where a sliding window begins and ends.
TEST(JoinLengths, WindowsEndWhereTheSequenceDoes) {
  expect_every_length_back([](ir::Builder& build, ValueId x, int64_t n) {
    const int64_t tokens = 4 * n + 1;
    std::vector<int64_t> begin;
    std::vector<int64_t> end;
    for (int64_t k = 0; k < tokens; ++k) {
      begin.push_back(std::max<int64_t>(0, k - 4));
      end.push_back(std::min<int64_t>(tokens, k + 6));
    }
    ValueId y = x;
    for (const std::vector<int64_t>& bound : {begin, end}) {
      const ValueId indices =
          build.constant(Tensor::from_values(Shape{1, tokens}, std::span<const int64_t>(bound)));
      y = build.binary("Add", y, build.cast(indices, DataType::kFloat32));
    }
    build.graph().add_output("y", y);
  });
}

void expect_tokens(const Graph& graph) {
  ValueId token;
  for (const ir::Node& node : graph.nodes()) {
    if (node.domain != "autosp") continue;
    ASSERT_EQ(node.inputs.size(), 3U) << node.op;
    EXPECT_EQ(node.inputs[1], token) << node.op;
    EXPECT_TRUE(node.inputs[2].valid()) << node.op;
    token = node.output(1);
  }
  EXPECT_FALSE(token.valid());
}

TEST(JoinLengths, CollectivesTakeTheirSizesFromAnOperand) {
  const Make make = [](ir::Builder& build, ValueId x, int64_t n) {
    const std::vector<int64_t> group = {0, 1};
    const ValueId all = build.node("AllGather", {x}, {DataType::kFloat32, {2, 8 * n}},
                                   {{"group", group},
                                    {"axis", int64_t{1}},
                                    {"sizes", std::vector<int64_t>{4 * n + 1, 4 * n - 1}}},
                                   "autosp");
    const ValueId boxes = build.node("AllToAll", {all}, {DataType::kFloat32, {1, 16 * n}},
                                     {{"group", group},
                                      {"shape", std::vector<int64_t>{1, 16 * n}},
                                      {"send_begin", std::vector<int64_t>{0, 0, 1, 0}},
                                      {"send_extent", std::vector<int64_t>{1, 8 * n, 1, 8 * n}},
                                      {"recv_begin", std::vector<int64_t>{0, 0, 0, 8 * n}},
                                      {"recv_extent", std::vector<int64_t>{1, 8 * n, 1, 8 * n}}},
                                     "autosp");
    build.graph().add_output("y", boxes);
  };
  expect_every_length_back(make);
  const OpenGraph open = joined(graphs_of(make));
  for (const ir::Node& node : open.graph.nodes()) {
    if (node.domain != "autosp") continue;
    ASSERT_EQ(node.inputs.size(), 3U) << node.op;
    EXPECT_FALSE(node.inputs[1].valid()) << node.op;
    EXPECT_FALSE(node.attributes.has("sizes") || node.attributes.has("recv_begin")) << node.op;
  }
  expect_tokens(thread_tokens(open.graph));
  std::vector<Graph> threaded = graphs_of(make);
  for (Graph& graph : threaded) graph = thread_tokens(graph);
  expect_tokens(joined(threaded).graph);
}

// Nothing but the result's own shape says whose part it is, and that is no number in the file.
TEST(JoinLengths, AnUnevenReduceScatterSaysWhosePartItHas) {
  for (const int64_t member : {0, 1, 2}) {
    SCOPED_TRACE(member);
    const Make make = [member](ir::Builder& build, ValueId x, int64_t n) {
      const std::vector<int64_t> sizes = {n + 3, n, 2 * n - 2};
      const ValueId part = build.node(
          "ReduceScatter", {x}, {DataType::kFloat32, {2, sizes[static_cast<size_t>(member)]}},
          {{"group", std::vector<int64_t>{0, 1, 2}}, {"axis", int64_t{1}}, {"sizes", sizes}},
          "autosp");
      const ValueId rows = build.node("ReduceScatter", {x}, {DataType::kFloat32, {1, 4 * n + 1}},
                                      {{"group", std::vector<int64_t>{0, 1, 2}},
                                       {"axis", int64_t{0}},
                                       {"sizes", std::vector<int64_t>{1, 0, 1}}},
                                      "autosp");
      build.graph().add_output("y", part);
      build.graph().add_output("z", rows);
    };
    expect_every_length_back(make);
  }
}

// --- What cannot stay open, by name.

void expect_refused(const Make& make, const std::string& what) {
  try {
    joined(graphs_of(make));
    FAIL() << "joined";
  } catch (const Error& error) {
    EXPECT_THAT(error.message(), HasSubstr("'seq' cannot stay open"));
    EXPECT_THAT(error.message(), HasSubstr(what));
    EXPECT_EQ(error.notes().size(), 1U);
    EXPECT_EQ(error.helps().size(), 1U);
  }
}

TEST(JoinLengths, RefusesNumbersThatDoNotFollow) {
  expect_refused(
      [](ir::Builder& build, ValueId x, int64_t n) {
        build.graph().add_output("y", build.slice(x, 1, 0, n / 2 + 1, "half"));
      },
      "operand 2 of node 'half");
}

TEST(JoinLengths, RefusesTablesByName) {
  expect_refused(
      [](ir::Builder& build, ValueId x, int64_t n) {
        std::vector<float> table(static_cast<size_t>(4 * n + 1));
        for (size_t k = 0; k < table.size(); ++k) table[k] = 1.0F / static_cast<float>(k + 1);
        const ValueId decay = build.constant(
            Tensor::from_values(Shape{4 * n + 1}, std::span<const float>(table)), "decay");
        build.graph().add_output("y", build.binary("Mul", x, decay, "product"));
      },
      "constant 'decay' float32[33], operand 1 of node 'product: Mul'");
}

TEST(JoinLengths, RefusesGraphsThatDifferInOperators) {
  expect_refused(
      [](ir::Builder& build, ValueId x, int64_t n) {
        build.graph().add_output("y", build.unary(n > 8 ? "Exp" : "Neg", x, "switch"));
      },
      "'switch: Neg' at 32 is 'switch: Exp' at 36");
}

TEST(JoinLengths, RefusesAttributesThatDiffer) {
  expect_refused(
      [](ir::Builder& build, ValueId x, int64_t n) {
        build.graph().add_output("y", build.node("Softmax", {x}, build.graph().type(x),
                                                 {{"axis", n > 8 ? 1 : -1L}}, "", "s"));
      },
      "has other attributes at 36 than at 32");
}

TEST(SameGraph, OneNumberIsADifference) {
  const auto with_number = [](int64_t number) {
    return graph_at(
        [number](ir::Builder& build, ValueId x, int64_t) {
          build.graph().add_output("y", build.slice(x, 1, 0, number, "cut"));
        },
        4);
  };
  EXPECT_EQ(first_difference(with_number(7), with_number(7)), std::nullopt);
  EXPECT_EQ(first_difference(with_number(7), with_number(8)), "node 'cut: Slice'");
}

}  // namespace
}  // namespace autosp::transforms

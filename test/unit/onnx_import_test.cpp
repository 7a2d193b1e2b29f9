// Importing: normal form, shape arithmetic, symbolic dimensions, functions, errors.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "onnx/model.h"

namespace autosp::onnx_io {
namespace {

using ir::Graph;
using ir::Node;
using ir::Shape;
using testing::HasSubstr;

Graph parse(const std::string& body, int opset = 20, const ImportOptions& options = {},
            const std::string& functions = "") {
  return parse_text(fmt::format("<ir_version: 8, opset_import: [\"\" : {}, \"local\" : 1]>\n{}\n{}",
                                opset, body, functions),
                    options);
}

std::vector<std::string> operators(const Graph& graph) {
  std::vector<std::string> ops;
  for (const Node& node : graph.nodes()) ops.push_back(node.op);
  return ops;
}

const Node& only_node(const Graph& graph) {
  EXPECT_EQ(graph.nodes().size(), 1u);
  return graph.nodes().front();
}

std::vector<int64_t> ints(const Graph& graph, ValueId id) {
  const auto values = graph.constant_ints(id);
  EXPECT_TRUE(values.has_value());
  return values.value_or(std::vector<int64_t>{});
}

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

Shape result_shape(const Graph& graph) { return graph.shape(graph.outputs().front().value); }

TEST(Import, ReduceAxesBecomeAnInput) {
  const Graph graph = parse(
      "g (float[2,3,4] x) => (float[a,b] y) { y = ReduceMean<axes=[-1], keepdims=0>(x) }", 13);
  EXPECT_EQ(ints(graph, only_node(graph).input(1)), (std::vector<int64_t>{2}));
  EXPECT_FALSE(only_node(graph).attributes.has("axes"));
  EXPECT_EQ(result_shape(graph), (Shape{2, 3}));
}

TEST(Import, ReduceWithoutAxesNamesThemAll) {
  const Graph graph = parse("g (float[2,3] x) => (float y) { y = ReduceSum<keepdims=0>(x) }");
  EXPECT_EQ(ints(graph, only_node(graph).input(1)), (std::vector<int64_t>{0, 1}));
}

TEST(Import, ReduceThatReducesNothingIsIdentity) {
  const Graph graph =
      parse("g (float[2,3] x) => (float[2,3] y) { y = ReduceSum<noop_with_empty_axes=1>(x) }");
  EXPECT_EQ(only_node(graph).op, "Identity");
}

TEST(Import, SqueezeAndUnsqueezeAxesBecomeInputs) {
  const Graph graph = parse(
      "g (float[2,1,3] x) => (float[a,b,c] y) { s = Squeeze(x) y = Unsqueeze<axes=[-1]>(s) }", 11);
  ASSERT_EQ(operators(graph), (std::vector<std::string>{"Squeeze", "Unsqueeze"}));
  EXPECT_EQ(ints(graph, graph.nodes()[0].input(1)), (std::vector<int64_t>{1}));
  EXPECT_EQ(ints(graph, graph.nodes()[1].input(1)), (std::vector<int64_t>{2}));
  EXPECT_EQ(result_shape(graph), (Shape{2, 3, 1}));
}

TEST(Import, SplitSizesAreStated) {
  const Graph graph = parse(
      "g (float[2,7] x) => (float[2,a] y, float[2,b] z) { y, z = Split<axis=-1, num_outputs=2>(x) "
      "}");
  EXPECT_EQ(ints(graph, only_node(graph).input(1)), (std::vector<int64_t>{4, 3}));
  EXPECT_EQ(only_node(graph).attributes.get_int("axis", -1), 1);
}

TEST(Import, SliceBoundsAreCanonical) {
  const Graph graph = parse(R"(g (float[2,7,5] x) => (float[a,b,c] y)
      <int64[3] begins = {-100, 1, -3}, int64[3] ends = {100, -1, 9223372036854775807},
       int64[3] axes = {0, -2, 2}> { y = Slice(x, begins, ends, axes) })");
  const Node& node = only_node(graph);
  EXPECT_EQ(node.inputs.size(), 4u);
  EXPECT_EQ(ints(graph, node.input(1)), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(ints(graph, node.input(2)), (std::vector<int64_t>{6, 5}));
  EXPECT_EQ(ints(graph, node.input(3)), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(result_shape(graph), (Shape{2, 5, 3}));
}

TEST(Import, SliceBackwardsKeepsTheFirstEntry) {
  const Graph graph = parse(R"(g (float[7] x) => (float[a] y)
      <int64[1] begin = {-1}, int64[1] end = {-9223372036854775807}, int64[1] axis = {0},
       int64[1] step = {-1}> { y = Slice(x, begin, end, axis, step) })");
  EXPECT_EQ(ints(graph, only_node(graph).input(1)), (std::vector<int64_t>{6}));
  EXPECT_EQ(ints(graph, only_node(graph).input(2)), (std::vector<int64_t>{-8}));
  EXPECT_EQ(result_shape(graph), (Shape{7}));
}

TEST(Import, PadAxesAreSpreadOverAllAxes) {
  const Graph graph = parse(R"(g (float[2,3] x) => (float[a,b] y)
      <int64[2] pads = {1, 2}, float zero = {0}, int64[1] axes = {-1}>
      { y = Pad(x, pads, zero, axes) })");
  EXPECT_EQ(ints(graph, only_node(graph).input(1)), (std::vector<int64_t>{0, 1, 0, 2}));
  EXPECT_EQ(result_shape(graph), (Shape{2, 6}));
}

TEST(Import, ReshapeTargetsAreExplicit) {
  const Graph graph =
      parse("g (float[2,3,4] x) => (float[a,b] y) <int64[2] t = {0, -1}> { y = Reshape(x, t) }");
  EXPECT_EQ(ints(graph, only_node(graph).input(1)), (std::vector<int64_t>{2, 12}));
  EXPECT_EQ(only_node(graph).attributes.get_int("allowzero", 0), 1);
}

TEST(Import, ExpandTargetIsTheResultShape) {
  const Graph graph =
      parse("g (float[2,3] x) => (float[a,b,c] y) <int64[3] t = {4, 1, 1}> { y = Expand(x, t) }");
  EXPECT_EQ(ints(graph, only_node(graph).input(1)), (std::vector<int64_t>{4, 2, 3}));
}

TEST(Import, OldSoftmaxFlattens) {
  const Graph graph =
      parse("g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax<axis=1>(x) }", 11);
  ASSERT_EQ(operators(graph), (std::vector<std::string>{"Reshape", "Softmax", "Reshape"}));
  EXPECT_EQ(graph.shape(graph.nodes()[1].output(0)), (Shape{2, 12}));
}

TEST(Import, DropoutOutsideTrainingIsIdentity) {
  const Graph graph = parse("g (float[2,3] x) => (float[2,3] y) { y = Dropout(x) }");
  EXPECT_EQ(only_node(graph).op, "Identity");
}

TEST(Import, ClipBoundsOfOldModelsBecomeInputs) {
  const Graph graph = parse("g (float[2] x) => (float[2] y) { y = Clip<min=-1.5>(x) }", 10);
  EXPECT_EQ(graph.constant(only_node(graph).input(1)).value_as_double(0), -1.5);
  EXPECT_FALSE(only_node(graph).input(2).valid());
}

TEST(Import, RangeTakesBoundsOfOneElement) {
  const Graph graph = parse(R"(g (int64[1] n) => (int64[7] y)
      <int64[1] zero = {0}, int64[1] end = {7}, int64 one = {1}> { y = Range(zero, end, one) })");
  EXPECT_EQ(ints(graph, graph.outputs()[0].value), (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6}));
}

TEST(Import, VectorsMultiplyAsMatrices) {
  const Graph graph =
      parse("g (float[5,3,4] a, float[4] b) => (float[5,3] y) { y = MatMul(a, b) }");
  EXPECT_EQ(operators(graph), (std::vector<std::string>{"Unsqueeze", "MatMul", "Squeeze"}));
  EXPECT_EQ(result_shape(graph), (Shape{5, 3}));
}

// The chain every exporter writes for x.view(x.size(0), -1).
TEST(Import, ShapeArithmeticIsEvaluated) {
  const Graph graph = parse(R"(g (float[B,S,6] x) => (float[B,k] y)
      <int64 zero = {0}, int64[1] rest = {-1}> {
        shape = Shape(x)
        batch = Gather<axis=0>(shape, zero)
        axis = Constant<value_ints=[0]>()
        batch1 = Unsqueeze(batch, axis)
        target = Concat<axis=0>(batch1, rest)
        y = Reshape(x, target) })",
                            20, {.dims = {{"B", 2}, {"S", 5}}});
  EXPECT_EQ(only_node(graph).op, "Reshape");
  EXPECT_EQ(result_shape(graph), (Shape{2, 30}));
}

TEST(Import, MasksOfTwoSequenceDimensionsAreNotEvaluated) {
  const Graph graph = parse(R"(g (float[S,S] x) => (bool[S,S] mask) {
        shape = Shape<start=0, end=1>(x)
        first = Constant<value_int=0>()
        step = Constant<value_int=1>()
        count = Squeeze(shape)
        row = Range(first, count, step)
        axis = Constant<value_ints=[1]>()
        column = Unsqueeze(row, axis)
        mask = LessOrEqual(row, column) })",
                            20, {.dims = {{"S", 9}}});
  EXPECT_EQ(only_node(graph).op, "LessOrEqual");
  EXPECT_TRUE(graph.is_constant(only_node(graph).input(0)));
  EXPECT_TRUE(graph.is_constant(only_node(graph).input(1)));
}

TEST(Import, ParametersKeepTheirIdentity) {
  const Graph graph = parse(R"(g (float[2,3] x) => (float[2,2] y)
      <float[2,3] w = {1, 2, 3, 4, 5, 6}> { t = Transpose(w) y = MatMul(x, t) })");
  EXPECT_EQ(operators(graph), (std::vector<std::string>{"Transpose", "MatMul"}));
}

// A constant of one element is folded unless a gradient's name or the user says it is trained.
TEST(Import, ParametersOfOneElementKeepTheirIdentity) {
  const auto operators_with = [](const std::string& output, const ImportOptions& options) {
    return operators(parse(fmt::format("g (float[2] x) => (float[2] y, float {0})\n"
                                       "<float s = {{2}}> {{ e = Exp(s) y = Mul(x, e) "
                                       "{0} = ReduceSum(y) }}",
                                       output),
                           20, options));
  };
  const std::vector<std::string> folded = {"Mul", "ReduceSum"};
  const std::vector<std::string> kept = {"Exp", "Mul", "ReduceSum"};
  EXPECT_EQ(operators_with("z", {}), folded);
  EXPECT_EQ(operators_with("s_grad", {}), kept);
  EXPECT_EQ(operators_with("z", {.parameters = {"s"}}), kept);
}

TEST(Import, ListsUnboundDimensionsWithTheirUses) {
  const std::string message = message_of(
      [] { parse("g (float[B,S] x, int64[B] y) => (float[B,S] z) { z = Identity(x) }"); });
  EXPECT_THAT(message, HasSubstr("'B' (in x:0, y:0), 'S' (in x:1)"));
  EXPECT_THAT(message, HasSubstr("--dim B=N --dim S=N"));
}

TEST(Import, BindsDimensionsFromInputShapes) {
  const Graph graph = parse("g (float[B,S] x) => (float[B,S] z) { z = Identity(x) }", 20,
                            {.input_shapes = {{"x", {2, 7}}}});
  EXPECT_EQ(result_shape(graph), (Shape{2, 7}));
}

TEST(Import, RefusesContradictingBindings) {
  const std::string text = "g (float[B,S] x) => (float[B,S] z) { z = Identity(x) }";
  EXPECT_THAT(message_of([&] {
                parse(text, 20, {.dims = {{"S", 8}}, .input_shapes = {{"x", {2, 7}}}});
              }),
              HasSubstr("'S' is 8"));
  EXPECT_THAT(message_of([&] {
                parse(text, 20, {.dims = {{"seq", 8}, {"B", 1}, {"S", 2}}});
              }),
              HasSubstr("no symbolic dimension 'seq'"));
}

TEST(Import, InlinesLocalFunctionsWithTheirAttributes) {
  const Graph graph =
      parse("g (float[2,3] x) => (float[2,3] y) { y = local.twice<k=1>(x) }", 20, {},
            R"(<domain: "local", opset_import: ["" : 20]>
                               twice <k> (a) => (b) { t = Softmax<axis: int = @k>(a) b = Add(t, t) })");
  ASSERT_EQ(operators(graph), (std::vector<std::string>{"Softmax", "Add"}));
  EXPECT_EQ(graph.nodes()[0].attributes.get_int("axis", 0), 1);
  EXPECT_EQ(graph.name_of(graph.outputs()[0].value), "y");
}

TEST(Import, InlinesStandardFunctions) {
  const Graph attention = parse(
      "g (float[1,2,5,4] q, float[1,2,5,4] k, float[1,2,5,4] v) => (float[1,2,5,4] y) "
      "{ y = Attention(q, k, v) }",
      23);
  const auto ops = operators(attention);
  EXPECT_EQ(std::ranges::count(ops, "Softmax"), 1);
  EXPECT_EQ(std::ranges::count(ops, "Attention"), 0);
  EXPECT_EQ(result_shape(attention), (Shape{1, 2, 5, 4}));
  const Graph norm =
      parse("g (float[2,4] x, float[4] w) => (float[2,4] y) { y = RMSNormalization(x, w) }", 23);
  const auto norm_ops = operators(norm);
  EXPECT_EQ(std::ranges::count(norm_ops, "RMSNormalization"), 0);
  EXPECT_EQ(result_shape(norm), (Shape{2, 4}));
}

TEST(Import, KnownBranchesAreInlinedAndOthersRefused) {
  const std::string branches =
      "<then_branch = t () => (float[2] a) { a = Neg(x) }, "
      "else_branch = e () => (float[2] b) { b = Exp(x) }>";
  const Graph graph =
      parse("g (float[2] x) => (float[2] y) <bool c = {0}> { y = If" + branches + "(c) }");
  EXPECT_EQ(only_node(graph).op, "Exp");
  EXPECT_THAT(message_of([&] {
                parse("g (float[2] x, bool c) => (float[2] y) { y = If" + branches + "(c) }");
              }),
              HasSubstr("control flow"));
}

TEST(Import, SortsNodesAndNamesCycles) {
  const Graph graph = parse("g (float[2] x) => (float[2] y) { y = Neg(t) t = Exp(x) }");
  EXPECT_EQ(operators(graph), (std::vector<std::string>{"Exp", "Neg"}));
  EXPECT_THAT(
      message_of([] { parse("g (float[2] x) => (float[2] y) { y = Add(x, t) t = Exp(y) }"); }),
      HasSubstr("cycle: 'y: Add' -> 't: Exp' -> 'y: Add'"));
}

TEST(Import, NamesUnknownOperatorsAndNearMisses) {
  const std::string message =
      message_of([] { parse("g (float[2] x) => (float[2] y) { y = Sofmax(x) }"); });
  EXPECT_THAT(message, HasSubstr("'Sofmax', which is not known"));
  EXPECT_THAT(message, HasSubstr("'Softmax'"));
}

TEST(Import, NamesOperandsThatDoNotFit) {
  const std::string message = message_of(
      [] { parse("g (float[2,3] a, float[2,3] b) => (float[2,3] y) { y = MatMul(a, b) }"); });
  EXPECT_THAT(message, HasSubstr("y: MatMul"));
  EXPECT_THAT(message, HasSubstr("'a' float32[2, 3], 'b' float32[2, 3]"));
}

TEST(Import, NamesAttributesThatTheOperatorDoesNotHave) {
  const auto message = [](const char* node) {
    return message_of(
        [&] { parse(fmt::format("g (float[2,3] x) => (float[a,b] y) {{ [n] y = {} }}", node)); });
  };
  EXPECT_THAT(message("Transpose <perms = [1, 0]> (x)"),
              HasSubstr("'n: Transpose' has an attribute 'perms', which the operator does not"));
  EXPECT_THAT(message("Transpose <perm = 1> (x)"), HasSubstr("attribute 'perm' of type INT"));
  EXPECT_THAT(message("Transpose <perm = [0]> (x)"), HasSubstr("has perm [0]"));
  EXPECT_THAT(message("ReduceSum <keepdims = -100> (x)"), HasSubstr("has keepdims -100"));
}

TEST(Import, NamesShapesThatDependOnData) {
  const std::string message =
      message_of([] { parse("g (float[4] x) => (int64[1,k] y) { y = NonZero(x) }"); });
  EXPECT_THAT(message, HasSubstr("shape of 'y', computed by node 'y: NonZero'"));
}

class ImportFile : public testing::Test {
 protected:
  std::filesystem::path write(const std::string& name, const std::string& bytes) {
    auto path = folder_ / name;
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  std::string import_error(const std::filesystem::path& path) {
    return message_of([&] { import_model(path); });
  }
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) /
              testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path folder_;
};

TEST_F(ImportFile, SaysWhatIsWrongWithIt) {
  EXPECT_THAT(import_error(folder_ / "none.onnx"), HasSubstr("there is no file"));
  EXPECT_THAT(import_error(write("text.onnx", "hello, this is not a model")),
              HasSubstr("is not an ONNX file"));
  EXPECT_THAT(import_error(write("empty.onnx", "")), HasSubstr("is not an ONNX file"));
}

TEST_F(ImportFile, NoticesTruncation) {
  std::ifstream stream(AUTOSP_SOURCE_DIR "/models/graphs/nano_static.onnx", std::ios::binary);
  ASSERT_TRUE(stream);
  const std::string bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  for (const size_t keep : {bytes.size() / 2, bytes.size() - 1, size_t{40}}) {
    EXPECT_THAT(import_error(write("short.onnx", bytes.substr(0, keep))), HasSubstr("truncated"));
  }
}

TEST(ImportModels, ReadsEveryCommittedGraph) {
  int count = 0;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(AUTOSP_SOURCE_DIR "/models/graphs")) {
    if (entry.path().extension() != ".onnx") continue;
    SCOPED_TRACE(entry.path().string());
    ImportOptions options;
    for (const SymbolicDim& dim : symbolic_dims(entry.path())) options.dims[dim.name] = 16;
    const Graph graph = import_model(entry.path(), options);
    EXPECT_GT(graph.nodes().size(), 100u);
    EXPECT_GT(graph.outputs().size(), 1u);
    ++count;
  }
  EXPECT_GT(count, 0);
}

TEST(Import, PositionsBeyondATableAreRefused) {
  const auto gather = [](const std::string& indices) {
    return message_of([&] {
      parse(
          fmt::format("g (float[4,2] table) => (float[a,b] y) <int64[2] at = {{{}}}> "
                      "{{ [look] y = Gather(table, at) }}",
                      indices));
    });
  };
  EXPECT_EQ(gather("3, -4"), "no error");
  EXPECT_THAT(gather("0, 4"),
              HasSubstr("node 'look: Gather' takes entry 4 along axis 0 of 'table'"));
  EXPECT_THAT(gather("-5, 0"), HasSubstr("takes entry -5"));
}

}  // namespace
}  // namespace autosp::onnx_io

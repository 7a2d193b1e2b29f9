// Exporting: files, text, names, external data, the domain of collectives.
#include "onnx/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "ir/builder.h"

namespace autosp::onnx_io {
namespace {

using ir::Attributes;
using ir::DataType;
using ir::Graph;
using ir::Type;
using testing::HasSubstr;

std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

class Export : public testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::path(testing::TempDir()) /
        ("export_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  size_t files() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder_), {}));
  }
  Graph round_trip(const Graph& graph) {
    export_model(graph, folder_ / "m.onnx");
    return import_model(folder_ / "m.onnx");
  }

  std::filesystem::path folder_;
};

const Type kMatrix{DataType::kFloat32, {2, 3}};

TEST_F(Export, EveryCommittedGraphSurvivesFileAndText) {
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(AUTOSP_SOURCE_DIR "/models/graphs")) {
    if (entry.path().extension() != ".onnx") continue;
    SCOPED_TRACE(entry.path().string());
    ImportOptions options;
    for (const SymbolicDim& dim : symbolic_dims(entry.path())) options.dims[dim.name] = 16;
    const Graph graph = import_model(entry.path(), options);
    const std::string text = print_text(graph);
    export_model(graph, folder_ / "a.onnx");
    export_model(graph, folder_ / "b.onnx");
    EXPECT_EQ(read_bytes(folder_ / "a.onnx"), read_bytes(folder_ / "b.onnx"));
    EXPECT_EQ(print_text(import_model(folder_ / "a.onnx")), text);
    EXPECT_EQ(print_text(parse_text(text)), text);
  }
}

TEST_F(Export, OutputsKeepTheirNamesWhateverComputesThem) {
  Graph graph;
  ir::Builder build(graph);
  const ValueId x = graph.add_input("x", kMatrix);
  const ValueId y = build.unary("Neg", x, "hidden");
  const ValueId clash = build.unary("Exp", y, "first");
  graph.add_output("first", y);                                  // takes the name of another value
  graph.add_output("again", y);                                  // a value listed twice
  graph.add_output("copy", x);                                   // an input
  graph.add_output("one", build.scalar(DataType::kFloat32, 1));  // a constant
  graph.add_output("x", x);                                      // an input under its own name
  graph.add_output("exp", build.unary("Neg", clash));
  const Graph read = round_trip(graph);
  std::vector<std::string> names;
  for (const ir::Output& output : read.outputs()) names.push_back(output.name);
  EXPECT_EQ(names, (std::vector<std::string>{"first", "again", "copy", "one", "x", "exp"}));
  EXPECT_EQ(read.producer(read.outputs()[0].value)->op, "Neg");
  EXPECT_EQ(read.producer(read.outputs()[1].value)->op, "Identity");
  EXPECT_EQ(read.value(read.outputs()[4].value).kind, ir::ValueKind::kInput);
}

TEST_F(Export, KeepsMetadataOriginsAndConstantsOfEveryType) {
  Graph graph;
  ir::Builder build(graph);
  graph.name = "step";
  graph.metadata = {{"b", "2"}, {"a", "1"}};
  ValueId sum = graph.add_input("x", {DataType::kFloat64, {3}});
  for (const DataType type :
       {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16, DataType::kInt8,
        DataType::kUInt16, DataType::kInt64, DataType::kBool, DataType::kUInt64}) {
    const ValueId constant = graph.add_named_constant(fmt::format("c_{}", ir::name_of(type)),
                                                      ir::Tensor::filled({type, {3}}, 1));
    sum = build.binary("Add", sum, build.cast(constant, DataType::kFloat64));
    graph.set_origin(graph.value(sum).producer, "made by a test");
  }
  graph.add_output("y", sum);
  const Graph read = round_trip(graph);
  EXPECT_EQ(read.metadata, graph.metadata);
  EXPECT_EQ(read.name, "step");
  EXPECT_EQ(read.nodes().back().origin, "made by a test");
  const auto half = read.find("c_float16");
  ASSERT_TRUE(half.has_value());
  EXPECT_TRUE(read.constant(*half).identical(graph.constant(*graph.find("c_float16"))));
}

TEST_F(Export, ExternalDataIsReferencedAndValidated) {
  std::ofstream(folder_ / "weights.bin", std::ios::binary) << std::string(100, '\0');
  Graph graph;
  ir::Builder build(graph);
  const ValueId x = graph.add_input("x", kMatrix);
  const ValueId w = graph.add_external("w", kMatrix, {"weights.bin", 64, 24});
  graph.add_output("y", build.binary("Add", x, w));
  // Without a gradient it is a constant, and a small one is read.
  const Graph constant = round_trip(graph);
  EXPECT_EQ(constant.value(*constant.find("w")).kind, ir::ValueKind::kConstant);
  graph.add_output("w.grad", build.identity(x));
  const Graph read = round_trip(graph);
  const ir::Value& value = read.value(*read.find("w"));
  EXPECT_EQ(value.kind, ir::ValueKind::kExternal);
  EXPECT_EQ(value.external.offset, 64);
  EXPECT_EQ(value.external.length, 24);
  const auto error_after = [&](const std::function<void()>& change) {
    change();
    try {
      import_model(folder_ / "m.onnx");
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_THAT(error_after([&] { std::filesystem::resize_file(folder_ / "weights.bin", 87); }),
              HasSubstr("bytes 64 to 88 of 'weights.bin', which has 87"));
  EXPECT_THAT(error_after([&] { std::filesystem::remove(folder_ / "weights.bin"); }),
              HasSubstr("is missing"));
  Graph outside;
  outside.add_input("x", kMatrix);
  outside.add_output("y", outside.add_external("w", kMatrix, {"../weights.bin", 0, 24}));
  EXPECT_THAT(error_after([&] { export_model(outside, folder_ / "m.onnx"); }),
              HasSubstr("outside the model's folder"));
}

TEST_F(Export, WritesAllOrNothing) {
  Graph graph;
  graph.add_output("y", graph.add_input("x", kMatrix));
  EXPECT_THROW(export_model(graph, folder_ / "none" / "m.onnx"), Error);
  Graph wrong;
  ir::Builder build(wrong);
  wrong.add_output("y", build.node("NoSuchOperator", {wrong.add_input("x", kMatrix)}, kMatrix));
  EXPECT_THROW(export_model(wrong, folder_ / "m.onnx"), InternalError);
  EXPECT_EQ(files(), 0u);
  export_model(graph, folder_ / "m.onnx");
  EXPECT_EQ(files(), 1u);
}

TEST_F(Export, TheCheckerNoticesWrongTypes) {
  Graph wrong;
  ir::Builder build(wrong);
  const ValueId x = wrong.add_input("x", kMatrix);
  wrong.add_output("y", build.node("Neg", {x}, Type{DataType::kFloat32, {3, 2}}));
  EXPECT_THROW(export_model(wrong, folder_ / "m.onnx"), InternalError);
}

Graph collective(const std::string& op, Attributes attributes, ir::Shape result) {
  Graph graph;
  ir::Builder build(graph);
  attributes.set("group", std::vector<int64_t>{0, 1, 2});
  const ValueId x = graph.add_input("x", {DataType::kFloat32, {6, 4}});
  graph.add_output("y", build.node(op, {x}, Type{DataType::kFloat32, std::move(result)},
                                   std::move(attributes), std::string(ir::kAutospDomain)));
  return graph;
}

TEST_F(Export, CollectivesHaveSchemas) {
  const auto ints = [](std::vector<int64_t> values) { return values; };
  round_trip(collective("AllReduce", {}, {6, 4}));
  round_trip(collective("AllGather", {{"axis", int64_t{1}}, {"sizes", ints({4, 3, 4})}}, {6, 11}));
  round_trip(
      collective("ReduceScatter", {{"axis", int64_t{0}}, {"sizes", ints({2, 2, 2})}}, {2, 4}));
  // Uneven: the result's extent comes from value_info.
  const Graph uneven = round_trip(
      collective("ReduceScatter", {{"axis", int64_t{0}}, {"sizes", ints({3, 2, 1})}}, {3, 4}));
  EXPECT_EQ(uneven.shape(uneven.outputs()[0].value), (ir::Shape{3, 4}));
  round_trip(collective("AllToAll",
                        {{"shape", ints({2, 12})},
                         {"send_begin", ints({0, 0, 2, 0, 4, 0})},
                         {"send_extent", ints({2, 4, 2, 4, 2, 4})},
                         {"recv_begin", ints({0, 0, 0, 4, 0, 8})},
                         {"recv_extent", ints({2, 4, 2, 4, 2, 4})}},
                        {2, 12}));
  EXPECT_THROW(
      round_trip(collective("AllGather", {{"axis", int64_t{1}}, {"sizes", ints({4, 4})}}, {6, 8})),
      InternalError);
  EXPECT_THROW(round_trip(collective("AllGather",
                                     {{"axis", int64_t{1}}, {"sizes", ints({4, 4, 4})}}, {6, 8})),
               InternalError);
}

}  // namespace
}  // namespace autosp::onnx_io

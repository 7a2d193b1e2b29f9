#include "onnx/data_file.h"

#include <gtest/gtest.h>

#include "ir/builder.h"
#include "onnx/model.h"

namespace autosp::onnx_io {
namespace {

using ir::DataType;
using ir::Tensor;

Tensor numbers(ir::Shape shape, float first) {
  Tensor tensor({DataType::kFloat32, std::move(shape)});
  for (float& value : tensor.mutable_values<float>()) value = first++;
  return tensor;
}

TEST(DataFile, FindsTensorsByNameAndContent) {
  DataFile data("weights.bin");
  EXPECT_TRUE(data.empty());
  data.add("a", numbers({3, 5}, 0));
  data.add("b", numbers({7}, 100));
  EXPECT_EQ(data.find("a", numbers({3, 5}, 0))->offset, 0);
  EXPECT_EQ(data.find("b", numbers({7}, 100))->offset, 4096);
  EXPECT_EQ(data.find("b", numbers({7}, 100))->length, 28);
  EXPECT_FALSE(data.find("b", numbers({7}, 101)));
  EXPECT_FALSE(data.find("a", numbers({15}, 0)));
  EXPECT_FALSE(data.find("c", numbers({7}, 100)));
}

TEST(DataFile, ModelsReferToItAndReadBackTheirOwnCopiesOfTheRest) {
  const auto folder = std::filesystem::path(testing::TempDir()) / "data_file";
  std::filesystem::create_directories(folder);
  ir::Graph graph;
  ir::Builder build(graph);
  const ValueId x = graph.add_input("x", {DataType::kFloat32, {2000}});
  const ValueId shared = graph.add_named_constant("shared", numbers({2000}, 0));
  const ValueId own = graph.add_named_constant("own", numbers({2000}, 5));
  graph.add_output("y", build.binary("Add", build.binary("Mul", x, shared), own));
  graph.add_output("shared.grad", x);  // a parameter: its data is not read
  DataFile data("weights.bin");
  data.add("shared", numbers({2000}, 0));
  data.add("own", numbers({2000}, 6));  // another tensor of that name
  data.write(folder);
  export_model(graph, folder / "m.onnx", {.data = &data});
  const ir::Graph read = import_model(folder / "m.onnx");
  const ir::Value& reference = read.value(*read.find("shared"));
  EXPECT_EQ(reference.kind, ir::ValueKind::kExternal);
  EXPECT_EQ(reference.external.location, "weights.bin");
  EXPECT_TRUE(read.constant(*read.find("own")).identical(numbers({2000}, 5)));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace autosp::onnx_io

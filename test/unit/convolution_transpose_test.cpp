// ConvTranspose is the adjoint of Conv: <Conv(x), y> = <x, ConvTranspose(y)>.
#include <gtest/gtest.h>

#include "ir/builder.h"
#include "support/run_graph.h"

namespace autosp {
namespace {

using ir::DataType;
using ir::Shape;

struct ConvolutionCase {
  int64_t groups;
  std::vector<int64_t> strides, dilations, pads;
  Shape x, w, y;  // w is [filters, channels / groups, window...]
};

class ConvTranspose : public testing::TestWithParam<ConvolutionCase> {};

TEST_P(ConvTranspose, IsTheAdjointOfConv) {
  const ConvolutionCase& c = GetParam();
  ir::Graph graph;
  ir::Builder build(graph);
  const ValueId x = graph.add_input("x", {DataType::kFloat64, c.x});
  const ValueId y = graph.add_input("y", {DataType::kFloat64, c.y});
  const ValueId w = graph.add_input("w", {DataType::kFloat64, c.w});
  const ir::Attributes attributes{
      {"group", c.groups}, {"strides", c.strides}, {"dilations", c.dilations}, {"pads", c.pads}};
  const auto inner_product = [&](ValueId a, ValueId b) {
    std::vector<int64_t> axes;
    for (size_t k = 0; k < build.rank(a); ++k) axes.push_back(static_cast<int64_t>(k));
    return build.reduce_sum(build.binary("Mul", a, b), axes, false);
  };
  graph.add_output(
      "forward",
      inner_product(build.node("Conv", {x, w}, {DataType::kFloat64, c.y}, attributes), y));
  graph.add_output("adjoint", inner_product(x, build.node("ConvTranspose", {y, w},
                                                          {DataType::kFloat64, c.x}, attributes)));
  const auto outputs = test::run_graph(graph, test::random_feeds(graph));
  EXPECT_NE(outputs.at("forward").value_as_double(0), 0);
  EXPECT_NEAR(outputs.at("forward").value_as_double(0), outputs.at("adjoint").value_as_double(0),
              1e-12);
}

INSTANTIATE_TEST_SUITE_P(
    Forms, ConvTranspose,
    testing::Values(
        ConvolutionCase{1, {1}, {1}, {1, 1}, {2, 3, 7}, {4, 3, 3}, {2, 4, 7}},
        ConvolutionCase{2, {2}, {1}, {0, 0}, {2, 4, 7}, {6, 2, 3}, {2, 6, 3}},
        ConvolutionCase{
            1, {2, 1}, {1, 2}, {1, 0, 0, 2}, {1, 2, 5, 6}, {3, 2, 2, 3}, {1, 3, 3, 4}}));

}  // namespace
}  // namespace autosp

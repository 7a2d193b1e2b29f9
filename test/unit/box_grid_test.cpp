#include "transforms/spmd/box_grid.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "support/run_graph.h"

namespace autosp::transforms {
namespace {

using ir::Builder;
using ir::DataType;
using ir::Graph;
using ir::Shape;
using ir::Tensor;

// [0, 1, 2, ...] of a shape.
Tensor counting(const Shape& shape) {
  std::vector<int64_t> values(static_cast<size_t>(ir::num_elements(shape)));
  std::iota(values.begin(), values.end(), 0);
  return Tensor::from_values<int64_t>(shape, values);
}

// The elements of a box, row by row.
std::vector<int64_t> box_of(const Tensor& tensor, const Shape& begin, const Shape& extent) {
  const Shape& shape = tensor.type().shape;
  std::vector<int64_t> result;
  for (int64_t n = 0; n < ir::num_elements(extent); ++n) {
    int64_t rest = n;
    int64_t at = 0;
    int64_t stride = 1;
    for (size_t k = shape.size(); k-- > 0;) {
      at += (begin[k] + rest % extent[k]) * stride;
      rest /= extent[k];
      stride *= shape[k];
    }
    result.push_back(tensor.as_int64s()[static_cast<size_t>(at)]);
  }
  return result;
}

struct Boxes {
  Shape tensor;
  std::vector<Shape> begins;  // by member
  Shape extent;

  std::vector<int64_t> flat_begins() const {
    std::vector<int64_t> flat;
    for (const Shape& begin : begins) flat.insert(flat.end(), begin.begin(), begin.end());
    return flat;
  }
  std::vector<int64_t> flat_extents() const {
    std::vector<int64_t> flat;
    for (size_t k = 0; k < begins.size(); ++k)
      flat.insert(flat.end(), extent.begin(), extent.end());
    return flat;
  }
  std::optional<BoxGrid> grid() const {
    return find_box_grid(tensor, flat_begins(), flat_extents());
  }
};

void expect_blocks_are_boxes(const Boxes& boxes) {
  const auto grid = boxes.grid();
  ASSERT_TRUE(grid.has_value());
  Graph graph;
  const ValueId x = graph.add_input("x", {DataType::kInt64, boxes.tensor});
  Builder build(graph);
  const ValueId blocks = to_blocks(build, x, *grid);
  graph.add_output("blocks", build.identity(blocks));
  graph.add_output("again", build.identity(from_blocks(build, blocks, *grid)));
  const Tensor tensor = counting(boxes.tensor);
  const auto results = test::run_graph(graph, {{"x", tensor}});
  std::vector<int64_t> expected;
  for (const Shape& begin : boxes.begins) {
    const auto box = box_of(tensor, begin, boxes.extent);
    expected.insert(expected.end(), box.begin(), box.end());
  }
  EXPECT_EQ(results.at("blocks").as_int64s(), expected);
  EXPECT_EQ(results.at("blocks").type().shape[0], static_cast<int64_t>(boxes.begins.size()));
  EXPECT_EQ(results.at("again").as_int64s(), tensor.as_int64s());
  EXPECT_EQ(results.at("again").type().shape, boxes.tensor);
}

TEST(BoxGrid, OneAxis) {
  expect_blocks_are_boxes({{2, 6, 3}, {{0, 0, 0}, {0, 2, 0}, {0, 4, 0}}, {2, 2, 3}});
}

TEST(BoxGrid, FirstAxisNeedsNoTranspose) {
  const Boxes boxes{{6, 3}, {{0, 0}, {3, 0}}, {3, 3}};
  expect_blocks_are_boxes(boxes);
  Graph graph;
  Builder build(graph);
  to_blocks(build, graph.add_input("x", {DataType::kInt64, boxes.tensor}), *boxes.grid());
  EXPECT_EQ(graph.nodes().size(), 1U);  // a Reshape
}

TEST(BoxGrid, TwoAxesInEitherOrder) {
  expect_blocks_are_boxes({{4, 3, 6}, {{0, 0, 0}, {0, 0, 3}, {2, 0, 0}, {2, 0, 3}}, {2, 3, 3}});
  expect_blocks_are_boxes({{4, 3, 6}, {{0, 0, 0}, {2, 0, 0}, {0, 0, 3}, {2, 0, 3}}, {2, 3, 3}});
}

TEST(BoxGrid, WhatIsNoGridInMembersOrder) {
  const Shape tensor = {6, 3};
  EXPECT_FALSE((Boxes{tensor, {{3, 0}, {0, 0}}, {3, 3}}.grid()));          // other order
  EXPECT_FALSE((Boxes{tensor, {{0, 0}, {0, 0}}, {3, 3}}.grid()));          // one box twice
  EXPECT_FALSE((Boxes{tensor, {{0, 0}, {2, 0}}, {2, 3}}.grid()));          // a part only
  EXPECT_FALSE((Boxes{tensor, {{0, 0}, {1, 0}, {4, 0}}, {2, 3}}.grid()));  // overlapping
  EXPECT_FALSE(find_box_grid(tensor, {0, 0, 4, 0}, {4, 3, 2, 3}));         // uneven
  EXPECT_FALSE(find_box_grid(tensor, {0, 0, 0, 0}, {6, 3, 0, 0}));         // nothing to one
  EXPECT_FALSE((Boxes{{7, 3}, {{0, 0}, {3, 0}}, {3, 3}}.grid()));          // not a multiple
}

}  // namespace
}  // namespace autosp::transforms

// A scatter to a contiguous range of positions is a Pad.
//
// The gradient of `x[:, 1:]` is exported as
//
//   Transpose -> ScatterND(zeros, [[1], [2], …], ·) -> Transpose
//
// A scatter's positions are coupled: no rank can place its rows without the index of all, so the
// logit gradients would be gathered. When the index counts through a box (see index_grid.h), the
// scatter pads; rows of one position that are added are summed first, and a base that is not zero
// is kept outside the box. The index need not be constant, only affine: at a long sequence it is
// built from ranges. Position-embedding gradients take this form too.
#include <algorithm>

#include "ir/known_values.h"
#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/canonicalize/index_grid.h"

namespace autosp::transforms {

using ir::Builder;
using ir::Graph;
using ir::Node;
using ir::Rewriter;
using ir::Shape;

namespace {

// Bool, true inside the box; its shape broadcasts to `shape`. One axis is cut.
ValueId box_mask(Builder& build, const Shape& shape, size_t axis, int64_t begin, int64_t extent) {
  Shape mask_shape(shape.size(), 1);
  mask_shape[axis] = shape[axis];
  ir::Tensor mask(ir::Type{ir::DataType::kBool, std::move(mask_shape)});
  for (int64_t k = 0; k < extent; ++k) {
    mask.mutable_values<bool>()[static_cast<size_t>(begin + k)] = true;
  }
  return build.constant(std::move(mask));
}

// `base` outside the grid, `placed` (zero outside the grid) inside. Invalid when more than one
// dimension is cut: the inside would need a mask over several dimensions.
ValueId place_over(Builder& build, ValueId base, ValueId placed, const IndexGrid& grid,
                   const std::string& name) {
  const Shape shape = build.shape(base);
  std::optional<size_t> cut;
  for (size_t c = 0; c < grid.columns.size(); ++c) {
    if (grid.columns[c].extent == shape[c]) continue;
    if (cut) return {};
    cut = c;
  }
  if (!cut) return placed;
  const auto& column = grid.columns[*cut];
  return build.where(box_mask(build, shape, *cut, column.begin, column.extent), placed, base, name);
}

bool raise_scatter_nd(Rewriter& rewriter, AffineAnalysis& affine, const Node& node) {
  const Graph& graph = rewriter.from();
  const std::string reduction = node.attributes.get_string("reduction", "none");
  if (reduction != "none" && reduction != "add") return false;
  const Shape& shape = graph.shape(node.input(0));
  const Shape& index_shape = graph.shape(node.input(1));
  const auto columns = affine.find_columns(node.input(1));
  if (!columns) return false;
  const auto grid =
      find_index_grid(Shape(index_shape.begin(), index_shape.end() - 1), *columns, shape);
  // Rows of one position overwrite each other in an order that is not defined.
  if (!grid || (reduction == "none" && !grid->repeated.empty())) return false;
  Builder& build = rewriter.build();
  const std::string& name = graph.name_of(node.output(0));
  const bool zero = is_zero(graph, node.input(0));
  ValueId result =
      scatter_grid(build, rewriter.mapped(node.input(2)), *grid, shape, zero ? name : "");
  if (!zero) {
    const ValueId base = rewriter.mapped(node.input(0));
    result = reduction == "add" ? build.binary("Add", base, result, name)
                                : place_over(build, base, result, *grid, name);
    if (!result) return false;
  }
  rewriter.map(node.output(0), result);
  return true;
}

bool raise_scatter_elements(Rewriter& rewriter, AffineAnalysis& affine, const Node& node) {
  const Graph& graph = rewriter.from();
  const std::string reduction = node.attributes.get_string("reduction", "none");
  if ((reduction != "none" && reduction != "add") || !is_zero(graph, node.input(0))) return false;
  const Shape& shape = graph.shape(node.input(0));
  const Shape& rows = graph.shape(node.input(1));
  const size_t axis = ir::normalize_axis(node.attributes.get_int("axis", 0), shape.size());
  const auto index = affine.find(node.input(1));
  if (!index) return false;
  const auto begin = find_index_range(rows, *index, axis, shape[axis]);
  if (!begin) return false;
  std::vector<int64_t> before(shape.size(), 0);
  std::vector<int64_t> after(shape.size(), 0);
  before[axis] = *begin;
  for (size_t k = 0; k < shape.size(); ++k) after[k] = shape[k] - rows[k] - before[k];
  rewriter.map(node.output(0),
               pad_before_transpose(rewriter.build(), rewriter.mapped(node.input(2)), before, after,
                                    graph.name_of(node.output(0))));
  return true;
}

}  // namespace

Graph raise_scatter_to_pad(const Graph& graph) {
  AffineAnalysis affine(graph);
  return rewrite_nodes(graph, [&](Rewriter& rewriter, const Node& node) {
    if (node.is("ScatterND")) return raise_scatter_nd(rewriter, affine, node);
    if (node.is("ScatterElements")) return raise_scatter_elements(rewriter, affine, node);
    return false;
  });
}

}  // namespace autosp::transforms

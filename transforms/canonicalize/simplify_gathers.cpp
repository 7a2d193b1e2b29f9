// A gather from a contiguous range of positions is a Slice; over a grid of ranges, a view.
//
// Masks are exported as GatherND(attention_mask[B, S], grid[B, 1, 1, S, 2]) where the grid counts
// through all of batch and sequence, and position embeddings as Gather(table, 0 … S-1). The rows of
// a gather are free, but the gathered dimension is coupled: each rank would need all of it. As
// Slice, Reshape, Transpose and Expand (see index_grid.h) every dimension keeps its factor. A
// single constant position stays as it is (see select_to_masked_sum).
#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/canonicalize/index_grid.h"

namespace autosp::transforms {

using ir::Graph;
using ir::Node;
using ir::Rewriter;
using ir::Shape;

namespace {

bool simplify_gather_nd(Rewriter& rewriter, AffineAnalysis& affine, const Node& node) {
  const Graph& graph = rewriter.from();
  const Shape& shape = graph.shape(node.input(0));
  const Shape& index_shape = graph.shape(node.input(1));
  const Shape rows(index_shape.begin(), index_shape.end() - 1);
  const auto found = affine.find_columns(node.input(1));
  if (!found) return false;
  // A batch dimension is one more column, which counts along its own row axis.
  std::vector<Affine> columns;
  const auto batch_dims = static_cast<size_t>(node.attributes.get_int("batch_dims", 0));
  for (size_t k = 0; k < batch_dims; ++k) {
    Affine batch{rows, 0, std::vector<int64_t>(rows.size(), 0)};
    batch.strides[k] = rows[k] == 1 ? 0 : 1;
    columns.push_back(std::move(batch));
  }
  columns.insert(columns.end(), found->begin(), found->end());
  const auto grid = find_index_grid(rows, columns, shape);
  if (!grid) return false;
  rewriter.map(node.output(0), gather_grid(rewriter.build(), rewriter.mapped(node.input(0)), *grid,
                                           0, graph.name_of(node.output(0))));
  return true;
}

bool simplify_gather(Rewriter& rewriter, AffineAnalysis& affine, const Node& node) {
  const Graph& graph = rewriter.from();
  const Shape& shape = graph.shape(node.input(0));
  const Shape& rows = graph.shape(node.input(1));
  if (ir::num_elements(rows) == 1) return false;
  const size_t axis = ir::normalize_axis(node.attributes.get_int("axis", 0), shape.size());
  const auto index = affine.find(node.input(1));
  if (!index) return false;
  const auto grid = find_index_grid(rows, {*index}, {shape[axis]});
  if (!grid) return false;
  rewriter.map(node.output(0), gather_grid(rewriter.build(), rewriter.mapped(node.input(0)), *grid,
                                           axis, graph.name_of(node.output(0))));
  return true;
}

bool simplify_gather_elements(Rewriter& rewriter, AffineAnalysis& affine, const Node& node) {
  const Graph& graph = rewriter.from();
  const Shape& shape = graph.shape(node.input(0));
  const Shape& rows = graph.shape(node.input(1));
  const size_t axis = ir::normalize_axis(node.attributes.get_int("axis", 0), shape.size());
  const auto index = affine.find(node.input(1));
  if (!index) return false;
  const auto begin = find_index_range(rows, *index, axis, shape[axis]);
  if (!begin) return false;
  std::vector<int64_t> begins(shape.size(), 0);
  std::vector<int64_t> ends = rows;
  begins[axis] = *begin;
  ends[axis] = *begin + rows[axis];
  rewriter.map(node.output(0), rewriter.build().slice_all(rewriter.mapped(node.input(0)), begins,
                                                          ends, graph.name_of(node.output(0))));
  return true;
}

}  // namespace

Graph simplify_gathers(const Graph& graph) {
  AffineAnalysis affine(graph);
  return rewrite_nodes(graph, [&](Rewriter& rewriter, const Node& node) {
    if (node.is("GatherND")) return simplify_gather_nd(rewriter, affine, node);
    if (node.is("Gather")) return simplify_gather(rewriter, affine, node);
    if (node.is("GatherElements")) return simplify_gather_elements(rewriter, affine, node);
    return false;
  });
}

}  // namespace autosp::transforms

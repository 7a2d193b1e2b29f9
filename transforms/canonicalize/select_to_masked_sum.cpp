// One position of a computed value as a sum over all positions.
//
// Taking the first token (CLS) or the last one leaves a value that only one rank has. As
// ReduceSum(Where(position == k, x, 0)) every rank contributes, all but one of them zeros, and the
// planner sees an ordinary partial sum. The gradient puts one position back among zeros:
// Where(position == k, x, 0) with x broadcast. Selecting, not multiplying: other positions may hold
// infinities. Weights are selected by Gather and Slice as before; every rank has them whole.
#include <algorithm>
#include <unordered_set>

#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"

namespace autosp::transforms {

using ir::Builder;
using ir::Graph;
using ir::Node;
using ir::Rewriter;
using ir::Shape;

namespace {

// Bool, true at `position` along `axis` of a rank-`rank` tensor, of extent 1 elsewhere.
ValueId position_mask(Builder& build, size_t rank, size_t axis, int64_t extent, int64_t position) {
  Shape shape(rank, 1);
  shape[axis] = extent;
  ir::Tensor mask(ir::Type{ir::DataType::kBool, std::move(shape)});
  mask.mutable_values<bool>()[static_cast<size_t>(position)] = true;
  return build.constant(std::move(mask));
}

// Computed by arithmetic, not a view of an input or a constant.
bool is_activation(const Graph& graph, ValueId value) {
  static const std::unordered_set<std::string> kViews = {
      "Identity", "Cast",  "Reshape", "Squeeze", "Unsqueeze", "Flatten",
      "Expand",   "Slice", "Split",   "Concat",  "Transpose"};
  const Node* node = graph.producer(value);
  if (node == nullptr) return false;
  if (!kViews.contains(node->op)) return true;
  return is_activation(graph, node->input(0));
}

// Whether ReduceSum is defined for the type: it is not for bool and the small integers.
bool has_sum(ir::DataType dtype) {
  return is_floating(dtype) || dtype == ir::DataType::kInt32 || dtype == ir::DataType::kInt64;
}

bool sum_selected(Rewriter& rewriter, const Node& node, size_t axis, int64_t position,
                  bool keepdims) {
  const Graph& graph = rewriter.from();
  if (!is_activation(graph, node.input(0)) || !has_sum(graph.type(node.input(0)).dtype)) {
    return false;
  }
  Builder& build = rewriter.build();
  const ValueId x = rewriter.mapped(node.input(0));
  const ValueId mask = position_mask(build, build.rank(x), axis, build.shape(x)[axis], position);
  const ValueId sum = build.reduce_sum(build.where(mask, x, build.scalar_like(x, 0)),
                                       {static_cast<int64_t>(axis)}, keepdims);
  rewriter.map(node.output(0),
               build.reshape(sum, graph.shape(node.output(0)), graph.name_of(node.output(0))));
  return true;
}

bool select_gather(Rewriter& rewriter, const Node& node) {
  const Graph& graph = rewriter.from();
  const auto indices = graph.constant_ints(node.input(1));
  if (!indices || indices->size() != 1) return false;
  const Shape& shape = graph.shape(node.input(0));
  const size_t axis = ir::normalize_axis(node.attributes.get_int("axis", 0), shape.size());
  const int64_t index = (*indices)[0];
  if (shape[axis] < 2 || index < -shape[axis] || index >= shape[axis]) return false;
  return sum_selected(rewriter, node, axis, index < 0 ? index + shape[axis] : index,
                      graph.shape(node.input(1)).size() == 1);
}

// The only axis along which two shapes differ, when the shorter one has extent 1 there.
std::optional<size_t> only_unit_axis(const Shape& small, const Shape& large) {
  std::optional<size_t> found;
  for (size_t k = 0; k < small.size(); ++k) {
    if (small[k] == large[k]) continue;
    if (found || small[k] != 1) return std::nullopt;
    found = k;
  }
  return found;
}

bool select_slice(Rewriter& rewriter, const Node& node) {
  const Graph& graph = rewriter.from();
  const auto starts = graph.constant_ints(node.input(1));
  const auto axes = graph.constant_ints(node.input(3));
  if (!starts || !axes || starts->size() != 1 || node.input(4)) return false;
  const Shape& shape = graph.shape(node.input(0));
  const auto axis = only_unit_axis(graph.shape(node.output(0)), shape);
  if (!axis || ir::normalize_axis((*axes)[0], shape.size()) != *axis) return false;
  const int64_t start = (*starts)[0] < 0 ? (*starts)[0] + shape[*axis] : (*starts)[0];
  return sum_selected(rewriter, node, *axis, std::clamp<int64_t>(start, 0, shape[*axis] - 1), true);
}

bool broadcast_pad(Rewriter& rewriter, const Node& node) {
  const Graph& graph = rewriter.from();
  const auto pads = graph.constant_ints(node.input(1));
  const Shape& shape = graph.shape(node.output(0));
  if (!pads || node.input(2) || node.input(3) || pads->size() != 2 * shape.size() ||
      node.attributes.get_string("mode", "constant") != "constant") {
    return false;
  }
  const auto axis = only_unit_axis(graph.shape(node.input(0)), shape);
  const auto padded = std::ranges::count_if(*pads, [](int64_t count) { return count != 0; });
  if (!axis || (*pads)[*axis] + (*pads)[*axis + shape.size()] != shape[*axis] - 1 ||
      padded > ((*pads)[*axis] != 0) + ((*pads)[*axis + shape.size()] != 0)) {
    return false;
  }
  Builder& build = rewriter.build();
  const ValueId x = rewriter.mapped(node.input(0));
  const ValueId mask = position_mask(build, shape.size(), *axis, shape[*axis], (*pads)[*axis]);
  rewriter.map(node.output(0),
               build.where(mask, x, build.scalar_like(x, 0), graph.name_of(node.output(0))));
  return true;
}

}  // namespace

Graph select_to_masked_sum(const Graph& graph) {
  return rewrite_nodes(graph, [](Rewriter& rewriter, const Node& node) {
    if (node.is("Gather")) return select_gather(rewriter, node);
    if (node.is("Slice")) return select_slice(rewriter, node);
    if (node.is("Pad")) return broadcast_pad(rewriter, node);
    return false;
  });
}

}  // namespace autosp::transforms

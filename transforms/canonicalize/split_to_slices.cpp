// Split and Concat of unequal parts as windows.
//
// Equal parts are a factor of the dimension (3 of them in a fused qkv) and keep their operator.
// Unequal ones are windows, each with its own offset into one dimension: Slice takes a window out,
// Pad puts one in, and windows that tile a dimension add up to their concatenation.
#include <algorithm>

#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"

namespace autosp::transforms {

using ir::Builder;
using ir::DataType;
using ir::Graph;
using ir::Node;
using ir::Rewriter;

namespace {

bool equal_parts(const Graph& graph, const std::vector<ValueId>& parts, size_t axis) {
  return std::ranges::all_of(
      parts, [&](ValueId part) { return graph.shape(part)[axis] == graph.shape(parts[0])[axis]; });
}

bool slice_split(Rewriter& rewriter, const Node& node) {
  const Graph& graph = rewriter.from();
  const size_t axis =
      ir::normalize_axis(node.attributes.get_int("axis", 0), graph.shape(node.input(0)).size());
  if (std::ranges::any_of(node.outputs, [](ValueId output) { return !output; }) ||
      equal_parts(graph, node.outputs, axis)) {
    return false;
  }
  int64_t begin = 0;
  for (ValueId output : node.outputs) {
    const int64_t end = begin + graph.shape(output)[axis];
    rewriter.map(output,
                 rewriter.build().slice(rewriter.mapped(node.input(0)), static_cast<int64_t>(axis),
                                        begin, end, graph.name_of(output)));
    begin = end;
  }
  return true;
}

bool pad_concat(Rewriter& rewriter, const Node& node) {
  const Graph& graph = rewriter.from();
  const ir::Type& type = graph.type(node.output(0));
  const size_t axis = ir::normalize_axis(node.attributes.get_int("axis", 0), type.rank());
  if (equal_parts(graph, node.inputs, axis)) return false;
  Builder& build = rewriter.build();
  std::vector<ValueId> windows;
  int64_t begin = 0;
  for (ValueId part : node.inputs) {
    const int64_t extent = graph.shape(part)[axis];
    if (extent == 0) continue;
    std::vector<int64_t> before(type.rank(), 0);
    std::vector<int64_t> after(type.rank(), 0);
    before[axis] = begin;
    after[axis] = type.shape[axis] - begin - extent;
    windows.push_back(build.pad(rewriter.mapped(part), before, after));
    begin += extent;
  }
  const std::string& name = graph.name_of(node.output(0));
  if (type.dtype != DataType::kBool) {
    rewriter.map(node.output(0), build.sum(std::move(windows), name));
    return true;
  }
  ValueId any = windows[0];
  for (size_t k = 1; k < windows.size(); ++k) any = build.binary("Or", any, windows[k]);
  rewriter.map(node.output(0), any);
  return true;
}

}  // namespace

Graph split_to_slices(const Graph& graph) {
  return rewrite_nodes(graph, [](Rewriter& rewriter, const Node& node) {
    if (node.is("Split")) return slice_split(rewriter, node);
    if (node.is("Concat")) return pad_concat(rewriter, node);
    return false;
  });
}

}  // namespace autosp::transforms

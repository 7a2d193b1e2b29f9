// Dropout as a draw, a comparison and a selection.
//
//   u = RandomUniform;  mask = u >= ratio;  y = Where(mask, x / (1 - ratio), 0)
//
// The draw alone is random, and it does not read x. Every rank draws the whole of it, so that what
// is dropped does not depend on the number of ranks, and keeps its part; the rest is elementwise.
// The stream stays the original node's: its seed, or else its name. Draw and ratio are compared as
// float32, as the operator's kernel compares them; 1 - ratio is never rounded to 16 bits.
#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/sixteen_bit.h"

namespace autosp::transforms {

using ir::Builder;
using ir::DataType;
using ir::Graph;
using ir::Node;
using ir::Rewriter;

namespace {

ValueId draw_uniform(Rewriter& rewriter, const Node& node, const ir::Shape& shape) {
  ir::Attributes attributes{{"shape", std::vector<int64_t>(shape)},
                            {"dtype", static_cast<int64_t>(DataType::kFloat32)},
                            {"low", 0.0F},
                            {"high", 1.0F}};
  if (node.attributes.has("seed")) {
    attributes.set("seed", static_cast<float>(node.attributes.get_int("seed", 0)));
  }
  Graph& graph = rewriter.to();
  const NodeId id = graph.add_node("RandomUniform", {}, {{DataType::kFloat32, shape}},
                                   std::move(attributes), "", {}, node.name);
  return graph.node(id).outputs[0];
}

bool decompose(Rewriter& rewriter, const Node& node) {
  const Graph& graph = rewriter.from();
  const auto training = graph.constant_ints(node.input(2));
  if (!node.is("Dropout") || !training || (*training)[0] == 0) return false;
  Builder& build = rewriter.build();
  const ValueId x = rewriter.mapped(node.input(0));
  const ValueId ratio =
      node.input(1) ? rewriter.mapped(node.input(1)) : build.scalar(DataType::kFloat32, 0.5);
  const ValueId mask = build.binary("GreaterOrEqual", draw_uniform(rewriter, node, build.shape(x)),
                                    build.cast(ratio, DataType::kFloat32),
                                    node.output(1) ? graph.name_of(node.output(1)) : "");
  rewriter.map(node.output(1), mask);
  const DataType wide = wide_type(build.dtype(x));
  const ValueId kept = build.binary("Sub", build.scalar(wide, 1), build.cast(ratio, wide));
  const ValueId scaled = build.cast(build.binary("Div", build.cast(x, wide), kept), build.dtype(x));
  rewriter.map(node.output(0),
               build.where(mask, scaled, build.scalar_like(x, 0), graph.name_of(node.output(0))));
  return true;
}

}  // namespace

Graph decompose_dropout(const Graph& graph) { return rewrite_nodes(graph, decompose); }

}  // namespace autosp::transforms

// Dropout in the forms that ONNX Runtime fuses, and its gradient.
//
//   BiasDropout         residual + dropout(x + bias), and the mask
//   BitmaskDropout      the same as Dropout, but the mask is packed, 32 elements to a word
//   BitmaskBiasDropout  both
//
// Each becomes Dropout under the fused node's name, which decides what it draws. A packed mask
// becomes the mask itself: only gradients read it.
#include <algorithm>

#include "base/error.h"
#include "transforms/canonicalize/microsoft/lowering.h"
#include "transforms/sixteen_bit.h"

namespace autosp::transforms::microsoft {

using ir::Builder;
using ir::DataType;

namespace {

// Which bit of a packed mask stands for which element is known to its gradient alone.
void check_readers(const Lowering& lowering) {
  const ir::Graph& graph = lowering.rewriter.from();
  const ValueId mask = lowering.node.output(1);
  const auto refuse = [&](const std::string& reader) {
    throw Error("{} reads the packed mask of {}", reader, graph.describe(lowering.node))
        .note("which bit of it stands for which element is known to BitmaskDropoutGrad alone")
        .help("export the model without ONNX Runtime's BitmaskDropout fusion");
  };
  for (const ir::Node& reader : graph.nodes()) {
    const bool reads = std::ranges::find(reader.inputs, mask) != reader.inputs.end();
    if (reads && reader.op != "BitmaskDropoutGrad") refuse(graph.describe(reader));
  }
  for (const ir::Output& output : graph.outputs()) {
    if (output.value == mask) refuse(fmt::format("the output '{}'", output.name));
  }
}

// Dropout of `x`. Operands `ratio` and `ratio + 1` are the ratio and the training mode.
void lower_to_dropout(const Lowering& lowering, ValueId x, size_t ratio, ValueId residual,
                      bool packed) {
  Builder& build = lowering.build();
  std::vector<ValueId> operands = {x};
  for (const size_t k : {ratio, ratio + 1}) {
    operands.push_back(lowering.has(k) ? lowering.operand(k) : ValueId());
  }
  ir::Attributes attributes;
  if (lowering.node.attributes.has("seed")) {
    attributes.set("seed", lowering.node.attributes.get_int("seed", 0));
  }
  const ir::Type type = build.graph().type(x);
  const bool mask = lowering.wants(1);
  const NodeId id = build.graph().add_node(
      "Dropout", std::move(operands),
      {type, mask ? ir::Type{DataType::kBool, type.shape} : ir::Type{}}, std::move(attributes), "",
      {residual ? "" : lowering.name(0), mask && !packed ? lowering.name(1) : ""},
      lowering.node.name);
  const std::vector<ValueId> results = build.graph().node(id).outputs;
  lowering.rewriter.map(
      lowering.node.output(0),
      residual ? build.binary("Add", results[0], residual, lowering.name(0)) : results[0]);
  if (!mask) return;
  if (packed) check_readers(lowering);
  lowering.rewriter.map(lowering.node.output(1), results[1]);
}

ValueId biased(const Lowering& lowering) {
  return lowering.build().binary("Add", lowering.operand(0), lowering.operand(1));
}
ValueId residual(const Lowering& lowering) {
  return lowering.has(2) ? lowering.operand(2) : ValueId();
}

// dY / (1 - ratio) where the mask kept the element; dY itself where the forward pass did not train.
// Operands: dY, mask, ratio, training mode. 1 - ratio is never rounded to 16 bits.
void lower_dropout_grad(const Lowering& lowering) {
  Builder& build = lowering.build();
  const ValueId gradient = lowering.operand(0);
  const auto training = lowering.rewriter.from().constant_ints(lowering.node.input(3));
  if (training && training->front() == 0) {
    lowering.result(0, build.identity(gradient, lowering.name(0)));
    return;
  }
  const bool decided = training || !lowering.has(3);
  const ir::DataType dtype = build.dtype(gradient);
  const ir::DataType wide = wide_type(dtype);
  const ValueId ratio =
      lowering.has(2) ? build.cast(lowering.operand(2), wide) : build.scalar(wide, 0.5);
  const ValueId kept = build.binary("Sub", build.scalar(wide, 1), build.reshape(ratio, {}));
  const ValueId scaled = build.cast(build.binary("Div", build.cast(gradient, wide), kept), dtype);
  const ValueId masked = build.where(lowering.operand(1), scaled, build.scalar(dtype, 0),
                                     decided ? lowering.name(0) : std::string());
  lowering.result(0, decided ? masked
                             : build.where(build.reshape(lowering.operand(3), {}), masked, gradient,
                                           lowering.name(0)));
}

}  // namespace

const std::vector<LoweringRow>& dropout_lowerings() {
  using L = const Lowering&;
  static const std::vector<LoweringRow> kRows = {
      {"BiasDropout", [](L l) { lower_to_dropout(l, biased(l), 3, residual(l), false); }},
      {"BitmaskDropout", [](L l) { lower_to_dropout(l, l.operand(0), 1, {}, true); }},
      {"BitmaskBiasDropout", [](L l) { lower_to_dropout(l, biased(l), 3, residual(l), true); }},
      {"DropoutGrad", lower_dropout_grad},
      {"BitmaskDropoutGrad", lower_dropout_grad},
  };
  return kRows;
}

}  // namespace autosp::transforms::microsoft

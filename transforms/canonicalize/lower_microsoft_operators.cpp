// ONNX Runtime's training operators, and the attention that its optimizer fuses, as standard ones.
//
// A training artifact keeps gradients as fused operators (SoftmaxGrad_13, LayerNormalizationGrad,
// …) that hide sums over tokens, and adds each gradient into a buffer:
//
//   flag = InPlaceAccumulatorV2(W_grad.accumulation.buffer, dW, lazy_reset_grad)
//
// Here a step computes gradients and the caller accumulates them, so the accumulator goes: the
// graph output `flag` becomes the output `W_grad` with the value dW, and the buffers and the reset
// flag are no longer inputs. What each operator means is in microsoft/.
#include <unordered_map>

#include "ir/gradient_names.h"
#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/canonicalize/microsoft/lowering.h"

namespace autosp::transforms {

using ir::Graph;
using ir::Node;
using ir::Rewriter;

namespace microsoft {

void Lowering::result(size_t k, ValueId value) const {
  const ir::Type& type = result_type(k);
  if (ir::num_elements(build().shape(value)) != type.num_elements()) {
    throw Error("the operands of {} do not fit together", rewriter.from().describe(node))
        .note(fmt::format("result '{}' is {}, but they give {}",
                          rewriter.from().name_of(node.output(k)), ir::to_string(type),
                          ir::to_string(build().shape(value))))
        .help("make the training artifacts of ONNX Runtime again: these do not fit together");
  }
  rewriter.map(node.output(k), build().reshape(value, type.shape, name(k)));
}

std::vector<int64_t> Lowering::constant_ints(size_t k) const {
  const auto values = rewriter.to().constant_ints(operand(k));
  if (!values) {
    throw Error("operand {} of {} is not a constant", k, rewriter.from().describe(node))
        .note(fmt::format("it is '{}', {}", rewriter.from().name_of(node.input(k)),
                          to_string(rewriter.from().type(node.input(k)))))
        .help("export the model with fixed shapes, or bind its symbolic dimensions");
  }
  return *values;
}

}  // namespace microsoft

namespace {

using LoweringMap = std::unordered_map<std::string_view, microsoft::LoweringFunction>;

LoweringMap all_lowerings() {
  LoweringMap result;
  for (const auto* rows : {&microsoft::activation_lowerings(), &microsoft::dropout_lowerings(),
                           &microsoft::matmul_lowerings(), &microsoft::normalization_lowerings(),
                           &microsoft::indexing_lowerings(), &microsoft::loss_lowerings(),
                           &microsoft::attention_lowerings()}) {
    for (const auto& row : *rows) result.emplace(row.op, row.lower);
  }
  return result;
}

// Some exporters put these in the default domain.
bool is_microsoft(const Node& node) {
  return node.domain == ir::kMicrosoftDomain ||
         (node.domain.empty() && node.op.find("SimplifiedLayerNormalization") != std::string::npos);
}

bool is_accumulator(const Node& node) {
  return node.domain == ir::kMicrosoftDomain &&
         (node.op == "InPlaceAccumulatorV2" || node.op == "InPlaceAccumulator");
}

// Gives the accumulators' outputs their gradients' names and drops the inputs only they read.
Graph without_accumulators(const Graph& before, const Graph& lowered) {
  std::unordered_map<ValueId, std::string> gradient_of_flag;
  std::unordered_set<std::string> dropped;
  for (const Node& node : before.nodes()) {
    if (!is_accumulator(node)) continue;
    const std::string& buffer = before.name_of(node.input(0));
    for (ValueId output : node.outputs) {
      if (output) gradient_of_flag.emplace(output, ir::gradient_of_buffer(buffer).value_or(buffer));
    }
    for (ValueId input : {node.input(0), node.input(2)}) {
      if (input && before.value(input).kind == ir::ValueKind::kInput) {
        dropped.insert(before.name_of(input));
      }
    }
  }
  if (gradient_of_flag.empty()) return lowered;
  std::vector<ir::Output> outputs;
  for (size_t k = 0; k < before.outputs().size(); ++k) {
    const auto found = gradient_of_flag.find(before.outputs()[k].value);
    ir::Output output = lowered.outputs()[k];
    if (found != gradient_of_flag.end()) output.name = found->second;
    outputs.push_back(std::move(output));
  }
  const auto readers = consumers(lowered);
  for (ValueId input : lowered.inputs()) {
    if (!readers[input.index()].empty()) dropped.erase(lowered.name_of(input));
  }
  return with_interface(lowered, outputs, dropped);
}

}  // namespace

Graph lower_microsoft_operators(const Graph& graph) {
  const LoweringMap lowerings = all_lowerings();
  const Graph lowered = rewrite_nodes(graph, [&](Rewriter& rewriter, const Node& node) {
    if (is_accumulator(node)) {
      for (ValueId output : node.outputs) rewriter.map(output, rewriter.mapped(node.input(1)));
      return true;
    }
    if (!is_microsoft(node)) return false;
    const auto found = lowerings.find(node.op);
    if (found == lowerings.end()) return false;
    found->second({.rewriter = rewriter, .node = node});
    return true;
  });
  return without_accumulators(graph, lowered);
}

}  // namespace autosp::transforms

#include "transforms/canonicalize/broadcast_constants.h"

#include <algorithm>
#include <unordered_set>

#include "reference/kernels.h"

namespace autosp::transforms {

using ir::Graph;
using ir::Node;
using ir::Rewriter;
using ir::Shape;
using ir::Tensor;

namespace {

bool is_elementwise(const std::string& op) {
  static const std::unordered_set<std::string> kOps = {
      "Add",   "Sub",   "Mul",  "Div",        "Mod",     "Pow",         "Neg",
      "Abs",   "Sqrt",  "Exp",  "Reciprocal", "Cos",     "Sin",         "Min",
      "Max",   "Clip",  "Not",  "And",        "Or",      "Xor",         "Cast",
      "Where", "Equal", "Less", "Floor",      "Greater", "LessOrEqual", "GreaterOrEqual"};
  return kOps.contains(op);
}

// How an operator treats the axes of its result. Operands before `num_data` are aligned with it
// from the right; the rest are bounds and axes.
struct AxisUse {
  size_t num_data = 0;
  std::vector<bool> mixed;  // by axis: entries along it meet, move or come from elsewhere
};

std::optional<AxisUse> axis_use(const Graph& graph, const Node& node, size_t rank) {
  AxisUse use{.num_data = node.inputs.size(), .mixed = std::vector<bool>(rank, false)};
  if (is_elementwise(node.op)) return use;
  const auto mix = [&](const std::vector<int64_t>& axes) {
    for (int64_t axis : axes) use.mixed[ir::normalize_axis(axis, rank)] = true;
  };
  if (node.op == "Concat") {
    mix({node.attributes.get_int("axis", 0)});
    return use;
  }
  use.num_data = 1;
  const auto axes = graph.constant_ints(node.input(node.op == "CumSum" ? 1 : 3));
  if ((node.op == "CumSum" || node.op == "Slice") && axes) {
    mix(*axes);
    return use;
  }
  const auto pads = graph.constant_ints(node.input(1));
  if (node.op != "Pad" || !pads || node.input(3)) return std::nullopt;
  for (size_t k = 0; k < rank; ++k) use.mixed[k] = (*pads)[k] != 0 || (*pads)[k + rank] != 0;
  return use;
}

// One operand: its shape, and a tensor of the same rank that has extent 1 where it repeats.
struct Repeated {
  Shape full;
  Tensor entries;
};

std::optional<Repeated> find_repeated(const Graph& graph, ValueId value,
                                      const std::function<bool(ValueId)>& is_foldable) {
  const Shape& full = graph.shape(value);
  const Node* node = graph.producer(value);
  const bool expanded = node != nullptr && node->is("Expand");
  const ValueId source = expanded ? node->input(0) : value;
  if (!graph.is_constant(source) || !is_foldable(source)) return std::nullopt;
  Shape shape(full.size() - graph.shape(source).size(), 1);
  shape.insert(shape.end(), graph.shape(source).begin(), graph.shape(source).end());
  return Repeated{full, graph.constant(source).reshaped(std::move(shape))};
}

Tensor evaluate(const std::string& op, const std::vector<Tensor>& operands, const ir::Type& type,
                const ir::Attributes& attributes) {
  Graph graph;
  std::vector<ValueId> inputs;
  for (const Tensor& operand : operands) {
    const bool absent = operand.dtype() == ir::DataType::kUndefined;
    inputs.push_back(absent ? ValueId() : graph.add_constant(operand));
  }
  const NodeId id = graph.add_node(op, std::move(inputs), {type}, attributes);
  return reference::evaluate(graph, graph.node(id), operands)[0];
}

// The entries, written out along the axes that the operator mixes.
Tensor written_out(const Repeated& operand, const AxisUse& use) {
  Shape shape = operand.entries.shape();
  const size_t offset = use.mixed.size() - shape.size();
  for (size_t k = 0; k < shape.size(); ++k) {
    if (use.mixed[offset + k]) shape[k] = operand.full[k];
  }
  if (shape == operand.entries.shape()) return operand.entries;
  return evaluate("Expand", {operand.entries, Tensor::int64s(shape)},
                  {operand.entries.dtype(), shape}, {});
}

// A view that only adds or removes axes of extent 1: where the others went.
std::optional<Shape> viewed_shape(const Repeated& operand, const Shape& result) {
  Shape shape(result.size(), 1);
  size_t from = 0;
  for (size_t k = 0; k < result.size(); ++k) {
    if (result[k] == 1) continue;
    while (from < operand.full.size() && operand.full[from] == 1) ++from;
    if (from == operand.full.size() || operand.full[from] != result[k]) return std::nullopt;
    shape[k] = operand.entries.shape()[from++];
  }
  while (from < operand.full.size() && operand.full[from] == 1) ++from;
  return from == operand.full.size() ? std::optional(shape) : std::nullopt;
}

ValueId expanded(Rewriter& rewriter, const Node& node, Tensor entries) {
  const ValueId result = node.output(0);
  return rewriter.build().expand(rewriter.to().add_constant(std::move(entries)),
                                 rewriter.from().shape(result), rewriter.from().name_of(result));
}

}  // namespace

ValueId fold_repeated(Rewriter& rewriter, const Node& node,
                      const std::function<bool(ValueId)>& is_foldable) {
  if (!node.domain.empty() || node.outputs.size() != 1) return {};
  const ir::Type& type = rewriter.from().type(node.output(0));
  if (node.op == "Reshape" || node.op == "Squeeze" || node.op == "Unsqueeze") {
    const auto operand = find_repeated(rewriter.to(), rewriter.mapped(node.input(0)), is_foldable);
    const auto shape = operand ? viewed_shape(*operand, type.shape) : std::nullopt;
    if (!shape || *shape == type.shape) return {};
    return expanded(rewriter, node, operand->entries.reshaped(*shape));
  }

  const auto use = axis_use(rewriter.from(), node, type.rank());
  if (!use) return {};
  std::vector<Tensor> operands;
  Shape narrow(type.rank(), 1);
  int64_t num_entries = 0;
  for (size_t k = 0; k < node.inputs.size(); ++k) {
    if (!node.inputs[k]) {
      operands.emplace_back();
      continue;
    }
    const auto operand = find_repeated(rewriter.to(), rewriter.mapped(node.inputs[k]), is_foldable);
    if (!operand) return {};
    if (k >= use->num_data) {
      operands.push_back(operand->entries);
      continue;
    }
    operands.push_back(written_out(*operand, *use));
    const Shape& shape = operands.back().shape();
    num_entries += operands.back().num_elements();
    for (size_t d = 0; d < shape.size(); ++d) {
      int64_t& extent = narrow[narrow.size() - shape.size() + d];
      extent = std::max(extent, shape[d]);
    }
  }
  for (size_t d = 0; d < narrow.size(); ++d) {
    if (use->mixed[d]) narrow[d] = type.shape[d];
  }
  const bool grows = type.rank() > 1 && ir::num_elements(narrow) > num_entries + 1;
  if (narrow == type.shape || grows || reference::find_kernel(node.domain, node.op) == nullptr) {
    return {};
  }
  return expanded(rewriter, node,
                  evaluate(node.op, operands, {type.dtype, narrow}, node.attributes));
}

}  // namespace autosp::transforms

// Normal forms of reductions, of what normalises along axes, and of operators with one axis: axes
// are explicit and counted from the front.
#include "onnx/normal_form_rules.h"

#include <algorithm>

namespace autosp::onnx_io {

namespace {

using ir::Shape;

// Whether reduced axes stay, with extent 1. What ONNX leaves open about other numbers than 0 and 1,
// implementations answer differently.
int64_t keepdims_of(const Operation& operation) {
  const int64_t keepdims = operation.attributes.get_int("keepdims", 1);
  if (keepdims != 0 && keepdims != 1) {
    throw Error("node '{}' has keepdims {}", operation.describe(), keepdims)
        .note("it is 0 or 1")
        .help("check the model, and export it again");
  }
  return keepdims;
}

Values reduce(Emitter& emitter, Operation& operation) {
  const size_t rank = emitter.rank(operand(operation, 0));
  auto axes = take_ints(emitter, operation, "axes", 1);
  const bool noop = operation.attributes.get_int("noop_with_empty_axes", 0) != 0;
  operation.attributes.erase("noop_with_empty_axes");
  if (!axes || axes->empty()) {
    if (noop || rank == 0) return identity(emitter, operation);
    axes = iota(rank);
  }
  axes = checked_axes(operation, *std::move(axes), rank);
  std::ranges::sort(*axes);
  operation.attributes.set("keepdims", keepdims_of(operation));
  set_input(operation, 1, emitter.int64s(*std::move(axes)));
  return std::nullopt;
}

// Operators whose axis counts from operand 0's rank and is 0 unless stated.
Values with_axis(Emitter& emitter, Operation& operation) {
  operation.attributes.set("axis", checked_axis(operation, operation.attributes.get_int("axis", 0),
                                                emitter.rank(operand(operation, 0))));
  return std::nullopt;
}

Values arg_reduce(Emitter& emitter, Operation& operation) {
  operation.attributes.set("keepdims", keepdims_of(operation));
  return with_axis(emitter, operation);
}

// Before version 13 these flatten their operand to a matrix at `axis`.
Values softmax(Emitter& emitter, Operation& operation) {
  const ValueId x = operand(operation, 0);
  const Shape shape = emitter.shape(x);
  const int64_t otherwise = operation.version < 13 ? 1 : -1;
  const auto rank = static_cast<int64_t>(shape.size());
  const int64_t axis =
      checked_axis(operation, operation.attributes.get_int("axis", otherwise), shape.size());
  operation.attributes = {{"axis", axis}};
  if (operation.version >= 13 || axis == rank - 1) return std::nullopt;
  Shape matrix{1, 1};
  for (int64_t k = 0; k < rank; ++k) matrix[k < axis ? 0 : 1] *= shape[static_cast<size_t>(k)];
  const std::string& name = operation.results.front();
  const ValueId flat = (*reshape_to(emitter, operation, x, matrix, name + "/flat"))[0];
  const ValueId y =
      emitter.emit(operation, operation.op, {flat}, {{"axis", int64_t{1}}}, name + "/matrix");
  return reshape_to(emitter, operation, y, shape, name);
}

Values layer_normalization(Emitter& emitter, Operation& operation) {
  operation.attributes.set("axis", checked_axis(operation, operation.attributes.get_int("axis", -1),
                                                emitter.rank(operand(operation, 0))));
  return std::nullopt;
}

Values scatter(Emitter& emitter, Operation& operation) {
  operation.op = "ScatterElements";
  return with_axis(emitter, operation);
}

constexpr RuleRow kRules[] = {
    {"ReduceSum", reduce},
    {"ReduceMean", reduce},
    {"ReduceMax", reduce},
    {"ReduceMin", reduce},
    {"ReduceProd", reduce},
    {"ReduceLogSumExp", reduce},
    {"ArgMax", arg_reduce},
    {"ArgMin", arg_reduce},
    {"Softmax", softmax},
    {"LogSoftmax", softmax},
    {"Hardmax", softmax},
    {"LayerNormalization", layer_normalization},
    {"SimplifiedLayerNormalization", layer_normalization},
    {"Gather", with_axis},
    {"GatherElements", with_axis},
    {"ScatterElements", with_axis},
    {"Concat", with_axis},
    {"Scatter", scatter},
};

}  // namespace

std::span<const RuleRow> reduction_rules() { return kRules; }

}  // namespace autosp::onnx_io

// Normal forms of the other operators.
#include "onnx/normal_form_rules.h"

namespace autosp::onnx_io {

namespace {

Values one_hot(Emitter& emitter, Operation& operation) {
  operation.attributes.set("axis", checked_axis(operation, operation.attributes.get_int("axis", -1),
                                                emitter.rank(operand(operation, 0)) + 1));
  return std::nullopt;
}

Values top_k(Emitter& emitter, Operation& operation) {
  if (operation.attributes.has("k")) {
    set_input(operation, 1, emitter.int64s({operation.attributes.get_int("k", 1)}));
    operation.attributes.erase("k");
  }
  operation.attributes.set("axis", checked_axis(operation, operation.attributes.get_int("axis", -1),
                                                emitter.rank(operand(operation, 0))));
  return std::nullopt;
}

// Exporters also write bounds with one element and rank 1.
Values range(Emitter& emitter, Operation& operation) {
  for (size_t k = 0; k < operation.inputs.size(); ++k) {
    const ValueId bound = operand(operation, k);
    if (emitter.rank(bound) == 0) continue;
    if (ir::num_elements(emitter.shape(bound)) != 1) {
      throw Error("node '{}' takes its bounds from '{}' of shape {}", operation.describe(),
                  emitter.graph().name_of(bound), ir::to_string(emitter.shape(bound)));
    }
    const std::string name = fmt::format("{}/bound{}", operation.results.front(), k);
    operation.inputs[k] = (*reshape_to(emitter, operation, bound, {}, name))[0];
  }
  return std::nullopt;
}

Values clip(Emitter& emitter, Operation& operation) {
  if (operation.version < 11) {
    const ValueId x = operand(operation, 0);
    const auto bound = [&](const std::string& name) {
      if (!operation.attributes.has(name)) return ValueId();
      const float value = operation.attributes.get_float(name, 0);
      operation.attributes.erase(name);
      return emitter.constant(ir::Tensor::scalar(emitter.dtype(x), value));
    };
    const ValueId low = bound("min");
    const ValueId high = bound("max");
    operation.inputs = {x, low, high};
  }
  if (!operation.input(1) && !operation.input(2)) return identity(emitter, operation);
  return std::nullopt;
}

Values cast(Emitter& emitter, Operation& operation) {
  const ValueId x = operand(operation, 0);
  const int64_t to = operation.attributes.get_int("to", 0);
  if (to == static_cast<int64_t>(emitter.dtype(x))) return identity(emitter, operation);
  operation.attributes = {{"to", to}};  // `saturate` and `round_mode` concern 8-bit floats
  return std::nullopt;
}

Values cast_like(Emitter& emitter, Operation& operation) {
  operation.attributes = {{"to", static_cast<int64_t>(emitter.dtype(operand(operation, 1)))}};
  operation.op = "Cast";
  operation.inputs.resize(1);
  return cast(emitter, operation);
}

Values variadic(Emitter& emitter, Operation& operation) {
  if (operation.inputs.size() == 1) return identity(emitter, operation);
  return std::nullopt;
}

// Outside training, or with ratio 0, nothing is dropped.
Values dropout(Emitter& emitter, Operation& operation) {
  const ValueId x = operand(operation, 0);
  const bool has_inputs = operation.version >= 12;
  const auto known = [&](size_t k) -> std::optional<double> {
    const ValueId input = operation.input(k);
    if (!input || !emitter.graph().is_constant(input)) return std::nullopt;
    return emitter.graph().constant(input).value_as_double(0);
  };
  const bool trains = has_inputs && operation.input(2) && known(2).value_or(1) != 0;
  const bool drops = !operation.input(1) || known(1).value_or(1) != 0;
  if (trains && drops) return std::nullopt;
  std::vector<ValueId> values(operation.results.size());
  values[0] = emitter.emit(operation, "Identity", {x}, {}, operation.results[0]);
  if (operation.has_result(1)) {
    values[1] = emitter.emit(operation, "ConstantOfShape", {emitter.int64s(emitter.shape(x))},
                             {{"value", ir::Tensor::filled({ir::DataType::kBool, {1}}, 1)}},
                             operation.results[1]);
  }
  return values;
}

// A vector operand becomes a matrix, so that operators after this one need to know matrices only.
Values matmul(Emitter& emitter, Operation& operation) {
  const ValueId a = operand(operation, 0);
  const ValueId b = operand(operation, 1);
  const bool row = emitter.rank(a) == 1;
  const bool column = emitter.rank(b) == 1;
  if (!row && !column) return std::nullopt;
  const std::string& name = operation.results.front();
  const auto as_matrix = [&](ValueId x, int64_t axis, const char* suffix) {
    return emitter.emit(operation, "Unsqueeze", {x, emitter.int64s({axis})}, {}, name + suffix);
  };
  const ValueId left = row ? as_matrix(a, 0, "/row") : a;
  const ValueId right = column ? as_matrix(b, 1, "/column") : b;
  const ValueId product = emitter.emit(operation, "MatMul", {left, right}, {}, name + "/matrix");
  const auto rank = static_cast<int64_t>(emitter.rank(product));
  std::vector<int64_t> gone;
  if (row) gone.push_back(rank - 2);
  if (column) gone.push_back(rank - 1);
  return one(
      emitter.emit(operation, "Squeeze", {product, emitter.int64s(std::move(gone))}, {}, name));
}

constexpr RuleRow kRules[] = {
    {"OneHot", one_hot}, {"TopK", top_k},         {"Range", range},     {"Clip", clip},
    {"Cast", cast},      {"CastLike", cast_like}, {"Sum", variadic},    {"Max", variadic},
    {"Min", variadic},   {"Mean", variadic},      {"Dropout", dropout}, {"MatMul", matmul},
};

}  // namespace

std::span<const RuleRow> other_rules() { return kRules; }

}  // namespace autosp::onnx_io

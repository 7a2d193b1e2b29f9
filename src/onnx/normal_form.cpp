// Brings operators of versions 7 to 26 to the one form that ir/graph.h describes.
#include <unordered_map>

#include "onnx/normal_form_rules.h"

namespace autosp::onnx_io {

ValueId operand(const Operation& operation, size_t k) {
  if (!operation.input(k)) {
    throw Error("node '{}' lacks its operand {}", operation.describe(), k);
  }
  return operation.inputs[k];
}

void set_input(Operation& operation, size_t k, ValueId value) {
  if (operation.inputs.size() <= k) operation.inputs.resize(k + 1);
  operation.inputs[k] = value;
}

int64_t checked_axis(const Operation& operation, int64_t axis, size_t rank) {
  const auto limit = static_cast<int64_t>(rank);
  if (axis < -limit || axis >= limit) {
    throw Error("node '{}' names axis {} of an operand of rank {}", operation.describe(), axis,
                rank);
  }
  return axis < 0 ? axis + limit : axis;
}

std::vector<int64_t> checked_axes(const Operation& operation, std::vector<int64_t> axes,
                                  size_t rank) {
  for (int64_t& axis : axes) axis = checked_axis(operation, axis, rank);
  return axes;
}

std::optional<std::vector<int64_t>> take_ints(Emitter& emitter, Operation& operation,
                                              const std::string& attribute, size_t k) {
  if (operation.attributes.has(attribute)) {
    auto values = operation.attributes.get_ints(attribute);
    operation.attributes.erase(attribute);
    return values;
  }
  if (!operation.input(k)) return std::nullopt;
  auto values = emitter.graph().constant_ints(operation.inputs[k]);
  if (!values) {
    throw Error("node '{}' takes its '{}' from '{}', which is not known before the run",
                operation.describe(), attribute, emitter.graph().name_of(operation.inputs[k]))
        .help("bind the symbolic dimensions with --dim NAME=VALUE, or export with constant shapes");
  }
  return values;
}

std::vector<ValueId> one(ValueId value) { return {value}; }

Values identity(Emitter& emitter, const Operation& operation) {
  return one(
      emitter.emit(operation, "Identity", {operand(operation, 0)}, {}, operation.results.front()));
}

std::vector<int64_t> iota(size_t count) {
  std::vector<int64_t> values(count);
  for (size_t k = 0; k < count; ++k) values[k] = static_cast<int64_t>(k);
  return values;
}

Values reshape_to(Emitter& emitter, const Operation& operation, ValueId x, ir::Shape shape,
                  const std::string& name) {
  return one(emitter.emit(operation, "Reshape", {x, emitter.int64s(std::move(shape))},
                          {{"allowzero", int64_t{1}}}, name));
}

namespace {

const std::unordered_map<std::string_view, Rule>& rules() {
  static const auto table = [] {
    std::unordered_map<std::string_view, Rule> result;
    for (const auto rows : {view_rules(), piece_rules(), reduction_rules(), other_rules()}) {
      for (const RuleRow& row : rows) result.emplace(row.op, row.rule);
    }
    return result;
  }();
  return table;
}

}  // namespace

std::vector<ValueId> emit_normal_form(Emitter& emitter, Operation operation) {
  if (operation.domain.empty()) {
    const auto rule = rules().find(operation.op);
    if (rule != rules().end()) {
      if (operation.results.empty() || operation.results.front().empty()) {
        throw Error("node '{}' has no first result", operation.describe());
      }
      if (auto values = rule->second(emitter, operation)) return *std::move(values);
    }
  }
  if (operation.domain == ir::kAutospDomain) take_collective_numbers(emitter, operation);
  return emitter.emit(operation);
}

}  // namespace autosp::onnx_io

// Normal forms of constants, of shapes, and of views of tensors.
#include "onnx/normal_form_rules.h"

#include <algorithm>

namespace autosp::onnx_io {

namespace {

using ir::Shape;

Values constant(Emitter& emitter, Operation& operation) {
  const auto& attributes = operation.attributes;
  const std::string& name = operation.results.front();
  if (const ir::Tensor* value = attributes.get_tensor("value")) {
    return one(emitter.constant(*value, name));
  }
  if (attributes.has("value_int")) {
    const auto value = static_cast<double>(attributes.get_int("value_int", 0));
    return one(emitter.constant(ir::Tensor::scalar(ir::DataType::kInt64, value), name));
  }
  if (attributes.has("value_float")) {
    const float value = attributes.get_float("value_float", 0);
    return one(emitter.constant(ir::Tensor::scalar(ir::DataType::kFloat32, value), name));
  }
  for (const auto& [key, attribute] : attributes) {
    if (const auto* ints = std::get_if<std::vector<int64_t>>(&attribute)) {
      return one(emitter.constant(ir::Tensor::int64s(*ints), name));
    }
    if (const auto* floats = std::get_if<std::vector<float>>(&attribute)) {
      const Shape shape{static_cast<int64_t>(floats->size())};
      return one(
          emitter.constant(ir::Tensor::from_values(shape, std::span<const float>(*floats)), name));
    }
  }
  throw Error("node '{}' is a constant of an unsupported kind", operation.describe());
}

Values shape_of(Emitter& emitter, Operation& operation) {
  const Shape& shape = emitter.shape(operand(operation, 0));
  const auto rank = static_cast<int64_t>(shape.size());
  const auto resolve = [&](int64_t axis) {
    return std::clamp<int64_t>(axis < 0 ? axis + rank : axis, 0, rank);
  };
  const int64_t start = resolve(operation.attributes.get_int("start", 0));
  const int64_t end = std::max(start, resolve(operation.attributes.get_int("end", rank)));
  return one(emitter.constant(ir::Tensor::int64s(Shape(shape.begin() + start, shape.begin() + end)),
                              operation.results.front()));
}

Values size_of(Emitter& emitter, Operation& operation) {
  const int64_t size = ir::num_elements(emitter.shape(operand(operation, 0)));
  return one(emitter.constant(ir::Tensor::from_values({}, std::span<const int64_t>(&size, 1)),
                              operation.results.front()));
}

Values constant_of_shape(Emitter&, Operation& operation) {
  if (!operation.attributes.has("value")) {
    operation.attributes.set("value", ir::Tensor(ir::Type{ir::DataType::kFloat32, {1}}));
  }
  return std::nullopt;
}

// Reshape to `to`, which `asked` stands for in the model.
Values checked_reshape(Emitter& emitter, const Operation& operation, const Shape& to,
                       const Shape& asked) {
  const ValueId x = operand(operation, 0);
  const Shape& from = emitter.shape(x);
  const int64_t elements = ir::num_elements(from);
  if (std::ranges::any_of(to, [](int64_t extent) { return extent < 0; }) ||
      ir::num_elements(to) != elements) {
    throw Error("node '{}' reshapes '{}' of shape {} ({} elements) to {}", operation.describe(),
                emitter.graph().name_of(x), ir::to_string(from), elements, ir::to_string(asked))
        .note("a reshape keeps the number of elements")
        .help("check the model with onnx.checker.check_model(model, full_check=True)");
  }
  return reshape_to(emitter, operation, x, to, operation.results.front());
}

Values reshape(Emitter& emitter, Operation& operation) {
  const Shape& from = emitter.shape(operand(operation, 0));
  const ValueId shape = operand(operation, 1);
  const auto target = emitter.graph().constant_ints(shape);
  if (!target) {
    // The model may state what it does not compute.
    const bool stated = !operation.declared.empty() && operation.declared[0];
    if (!stated || emitter.graph().type(shape).dtype != ir::DataType::kInt64) return std::nullopt;
    return checked_reshape(emitter, operation, operation.declared[0]->shape,
                           operation.declared[0]->shape);
  }
  const bool allow_zero = operation.attributes.get_int("allowzero", 0) != 0;
  Shape to = *target;
  int64_t known = 1;
  std::optional<size_t> open;
  for (size_t k = 0; k < to.size(); ++k) {
    if (to[k] == 0 && !allow_zero && k < from.size()) to[k] = from[k];
    if (to[k] == -1 && !open) {
      open = k;
    } else {
      known *= to[k];
    }
  }
  const int64_t elements = ir::num_elements(from);
  if (open && known != 0) to[*open] = elements / known;
  if (open && known == 0) to[*open] = 0;
  return checked_reshape(emitter, operation, to, *target);
}

Values transpose(Emitter& emitter, Operation& operation) {
  const std::vector<int64_t> axes = iota(emitter.rank(operand(operation, 0)));
  std::vector<int64_t> permutation(axes.rbegin(), axes.rend());
  if (operation.attributes.has("perm")) permutation = operation.attributes.get_ints("perm");
  if (!std::ranges::is_permutation(permutation, axes)) {
    throw Error("node '{}' has perm {}", operation.describe(), ir::to_string(permutation))
        .note(
            fmt::format("the operand has {} axes, of which perm must name each once", axes.size()))
        .help("check the model with onnx.checker.check_model(model, full_check=True)");
  }
  operation.attributes.set("perm", std::move(permutation));
  return std::nullopt;
}

Values flatten(Emitter& emitter, Operation& operation) {
  const ValueId x = operand(operation, 0);
  const Shape& from = emitter.shape(x);
  int64_t axis = operation.attributes.get_int("axis", 1);
  if (axis < 0) axis += static_cast<int64_t>(from.size());
  if (axis < 0 || axis > static_cast<int64_t>(from.size())) {
    throw Error("node '{}' flattens at axis {} of an operand of rank {}", operation.describe(),
                axis, from.size());
  }
  Shape to{1, 1};
  for (size_t k = 0; k < from.size(); ++k) to[static_cast<int64_t>(k) < axis ? 0 : 1] *= from[k];
  return reshape_to(emitter, operation, x, std::move(to), operation.results.front());
}

Values expand(Emitter& emitter, Operation& operation) {
  const ValueId x = operand(operation, 0);
  const auto target = emitter.graph().constant_ints(operand(operation, 1));
  std::optional<Shape> to;
  if (target) {
    try {
      to = ir::broadcast(emitter.shape(x), *target);
    } catch (const InternalError&) {
      throw Error("node '{}' expands '{}' of shape {} to {}", operation.describe(),
                  emitter.graph().name_of(x), ir::to_string(emitter.shape(x)),
                  ir::to_string(*target));
    }
  } else if (!operation.declared.empty() && operation.declared[0]) {
    to = operation.declared[0]->shape;
  }
  if (!to) return std::nullopt;
  set_input(operation, 1, emitter.int64s(*std::move(to)));
  return std::nullopt;
}

Values squeeze(Emitter& emitter, Operation& operation) {
  const ValueId x = operand(operation, 0);
  const Shape& shape = emitter.shape(x);
  auto axes = take_ints(emitter, operation, "axes", 1);
  if (!axes) {
    axes.emplace();
    for (size_t k = 0; k < shape.size(); ++k) {
      if (shape[k] == 1) axes->push_back(static_cast<int64_t>(k));
    }
  }
  axes = checked_axes(operation, *std::move(axes), shape.size());
  std::ranges::sort(*axes);
  if (axes->empty()) return identity(emitter, operation);
  set_input(operation, 1, emitter.int64s(*std::move(axes)));
  return std::nullopt;
}

Values unsqueeze(Emitter& emitter, Operation& operation) {
  auto axes = take_ints(emitter, operation, "axes", 1);
  if (!axes) throw Error("node '{}' has no axes", operation.describe());
  const size_t rank = emitter.rank(operand(operation, 0)) + axes->size();
  axes = checked_axes(operation, *std::move(axes), rank);
  std::ranges::sort(*axes);
  if (axes->empty()) return identity(emitter, operation);
  set_input(operation, 1, emitter.int64s(*std::move(axes)));
  return std::nullopt;
}

constexpr RuleRow kRules[] = {
    {"Constant", constant},   {"Shape", shape_of},
    {"Size", size_of},        {"ConstantOfShape", constant_of_shape},
    {"Reshape", reshape},     {"Flatten", flatten},
    {"Expand", expand},       {"Squeeze", squeeze},
    {"Unsqueeze", unsqueeze}, {"Transpose", transpose},
};

}  // namespace

std::span<const RuleRow> view_rules() { return kRules; }

}  // namespace autosp::onnx_io

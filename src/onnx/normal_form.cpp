// Brings operators of versions 7 to 26 to the one form that ir/graph.h describes.
//
// A rule rewrites the operation in place (and returns nothing), or emits what replaces it (and
// returns the values of its results).
#include <algorithm>
#include <limits>
#include <unordered_map>

#include "onnx/emitter.h"

namespace autosp::onnx_io {

namespace {

using ir::Attributes;
using ir::Shape;
using Values = std::optional<std::vector<ValueId>>;
using Rule = Values (*)(Emitter&, Operation&);

// --- What rules share.

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

// Integers that are an attribute up to some version and input k from then on; nullopt when absent.
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

// --- Constants and shapes.

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

Values reshape_to(Emitter& emitter, const Operation& operation, ValueId x, Shape shape,
                  const std::string& name) {
  return one(emitter.emit(operation, "Reshape", {x, emitter.int64s(std::move(shape))},
                          {{"allowzero", int64_t{1}}}, name));
}

Values reshape(Emitter& emitter, Operation& operation) {
  const ValueId x = operand(operation, 0);
  const Shape& from = emitter.shape(x);
  const auto target = emitter.graph().constant_ints(operand(operation, 1));
  if (!target) {
    // The model may state what it does not compute.
    if (operation.declared.empty() || !operation.declared[0]) return std::nullopt;
    return reshape_to(emitter, operation, x, operation.declared[0]->shape,
                      operation.results.front());
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
  if (std::ranges::any_of(to, [](int64_t extent) { return extent < 0; }) ||
      ir::num_elements(to) != elements) {
    throw Error("node '{}' reshapes '{}' of shape {} ({} elements) to {}", operation.describe(),
                emitter.graph().name_of(x), ir::to_string(from), elements, ir::to_string(*target));
  }
  return reshape_to(emitter, operation, x, std::move(to), operation.results.front());
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

Values transpose(Emitter& emitter, Operation& operation) {
  const size_t rank = emitter.rank(operand(operation, 0));
  if (!operation.attributes.has("perm")) {
    auto perm = iota(rank);
    std::ranges::reverse(perm);
    operation.attributes.set("perm", std::move(perm));
  }
  return std::nullopt;
}

// --- Pieces of tensors.

// Bounds as numpy reads them, made canonical: 0 <= begin <= end <= extent for positive steps. For
// negative ones, an end before the first entry is written -extent-1, as ONNX needs it.
void clamp_bounds(int64_t extent, int64_t step, int64_t& begin, int64_t& end) {
  const auto wrap = [&](int64_t bound) { return bound < 0 ? bound + extent : bound; };
  if (step > 0) {
    begin = std::clamp<int64_t>(wrap(begin), 0, extent);
    end = std::clamp<int64_t>(wrap(end), begin, std::max(begin, extent));
    return;
  }
  begin = std::clamp<int64_t>(wrap(begin), 0, std::max<int64_t>(extent - 1, 0));
  end = end < -extent ? -1 : std::clamp<int64_t>(wrap(end), -1, extent - 1);
  if (end == -1) end = -extent - 1;
}

Values slice(Emitter& emitter, Operation& operation) {
  const ValueId x = operand(operation, 0);
  const Shape& shape = emitter.shape(x);
  auto begins = take_ints(emitter, operation, "starts", 1);
  auto ends = take_ints(emitter, operation, "ends", 2);
  if (!begins || !ends || begins->size() != ends->size()) {
    throw Error("node '{}' needs as many starts as ends", operation.describe());
  }
  auto axes = take_ints(emitter, operation, "axes", 3);
  if (!axes) axes = iota(begins->size());
  axes = checked_axes(operation, *std::move(axes), shape.size());
  auto steps = take_ints(emitter, operation, "steps", 4);
  if (!steps) steps.emplace(begins->size(), 1);
  if (axes->size() != begins->size() || steps->size() != begins->size()) {
    throw Error("node '{}' has {} starts, {} axes and {} steps", operation.describe(),
                begins->size(), axes->size(), steps->size());
  }
  std::vector<int64_t> order = iota(axes->size());
  std::ranges::sort(order, {}, [&](int64_t k) { return (*axes)[static_cast<size_t>(k)]; });
  std::vector<int64_t> cut_begins;
  std::vector<int64_t> cut_ends;
  std::vector<int64_t> cut_axes;
  std::vector<int64_t> cut_steps;
  for (int64_t position : order) {
    const auto k = static_cast<size_t>(position);
    const int64_t extent = shape[static_cast<size_t>((*axes)[k])];
    if ((*steps)[k] == 0) throw Error("node '{}' has step 0", operation.describe());
    clamp_bounds(extent, (*steps)[k], (*begins)[k], (*ends)[k]);
    if ((*begins)[k] == 0 && (*ends)[k] == extent && (*steps)[k] == 1) continue;
    cut_begins.push_back((*begins)[k]);
    cut_ends.push_back((*ends)[k]);
    cut_axes.push_back((*axes)[k]);
    cut_steps.push_back((*steps)[k]);
  }
  if (cut_axes.empty()) return identity(emitter, operation);
  const bool strided = std::ranges::any_of(cut_steps, [](int64_t step) { return step != 1; });
  operation.inputs = {x, emitter.int64s(std::move(cut_begins)), emitter.int64s(std::move(cut_ends)),
                      emitter.int64s(std::move(cut_axes))};
  if (strided) operation.inputs.push_back(emitter.int64s(std::move(cut_steps)));
  return std::nullopt;
}

Values pad(Emitter& emitter, Operation& operation) {
  const ValueId x = operand(operation, 0);
  const size_t rank = emitter.rank(x);
  const bool has_inputs = operation.version >= 11;
  auto pads = take_ints(emitter, operation, "pads", 1);
  if (!pads) throw Error("node '{}' has no pads", operation.describe());
  auto axes = has_inputs && operation.input(3) ? take_ints(emitter, operation, "axes", 3)
                                               : std::optional(iota(rank));
  axes = checked_axes(operation, *std::move(axes), rank);
  if (pads->size() != 2 * axes->size()) {
    throw Error("node '{}' has {} pads for {} axes", operation.describe(), pads->size(),
                axes->size());
  }
  std::vector<int64_t> full(2 * rank, 0);
  for (size_t k = 0; k < axes->size(); ++k) {
    const auto axis = static_cast<size_t>((*axes)[k]);
    full[axis] = (*pads)[k];
    full[rank + axis] = (*pads)[axes->size() + k];
  }
  ValueId fill = has_inputs ? operation.input(2) : ValueId();
  if (const float value = operation.attributes.get_float("value", 0); value != 0) {
    fill = emitter.constant(ir::Tensor::scalar(emitter.dtype(x), value));
  }
  operation.attributes.erase("value");
  if (operation.attributes.get_string("mode", "constant") == "constant") {
    operation.attributes.erase("mode");
  }
  if (std::ranges::all_of(full, [](int64_t count) { return count == 0; })) {
    return identity(emitter, operation);
  }
  operation.inputs = {x, emitter.int64s(std::move(full))};
  if (fill) operation.inputs.push_back(fill);
  return std::nullopt;
}

Values split(Emitter& emitter, Operation& operation) {
  const ValueId x = operand(operation, 0);
  const int64_t axis =
      checked_axis(operation, operation.attributes.get_int("axis", 0), emitter.rank(x));
  const int64_t extent = emitter.shape(x)[static_cast<size_t>(axis)];
  auto sizes = take_ints(emitter, operation, "split", 1);
  const auto pieces = static_cast<int64_t>(operation.results.size());
  if (!sizes) {
    // The last piece is the smaller one when the extent does not divide.
    const int64_t chunk = (extent + pieces - 1) / pieces;
    sizes.emplace(static_cast<size_t>(pieces), chunk);
    sizes->back() = extent - chunk * (pieces - 1);
  }
  int64_t total = 0;
  for (int64_t size : *sizes) total += size;
  if (total != extent || static_cast<int64_t>(sizes->size()) != pieces || sizes->back() < 0) {
    throw Error("node '{}' splits an extent of {} into {} for {} results", operation.describe(),
                extent, ir::to_string(*sizes), pieces);
  }
  operation.attributes = {{"axis", axis}};
  operation.inputs = {x, emitter.int64s(*std::move(sizes))};
  return std::nullopt;
}

// --- Reductions and normalizations.

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
  operation.attributes.set("keepdims", operation.attributes.get_int("keepdims", 1));
  set_input(operation, 1, emitter.int64s(*std::move(axes)));
  return std::nullopt;
}

Values arg_reduce(Emitter& emitter, Operation& operation) {
  operation.attributes.set("axis", checked_axis(operation, operation.attributes.get_int("axis", 0),
                                                emitter.rank(operand(operation, 0))));
  return std::nullopt;
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

// --- The rest.

// Operators whose axis counts from operand 0's rank and is 0 unless stated.
Values axis_from_zero(Emitter& emitter, Operation& operation) {
  return arg_reduce(emitter, operation);
}

Values scatter(Emitter& emitter, Operation& operation) {
  operation.op = "ScatterElements";
  return arg_reduce(emitter, operation);
}

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

const std::unordered_map<std::string, Rule>& rules() {
  static const std::unordered_map<std::string, Rule> table = {
      {"Constant", constant},
      {"Shape", shape_of},
      {"Size", size_of},
      {"ConstantOfShape", constant_of_shape},
      {"Reshape", reshape},
      {"Flatten", flatten},
      {"Expand", expand},
      {"Squeeze", squeeze},
      {"Unsqueeze", unsqueeze},
      {"Transpose", transpose},
      {"Slice", slice},
      {"Pad", pad},
      {"Split", split},
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
      {"Gather", axis_from_zero},
      {"GatherElements", axis_from_zero},
      {"ScatterElements", axis_from_zero},
      {"Concat", axis_from_zero},
      {"Scatter", scatter},
      {"OneHot", one_hot},
      {"TopK", top_k},
      {"Range", range},
      {"Clip", clip},
      {"Cast", cast},
      {"CastLike", cast_like},
      {"Sum", variadic},
      {"Max", variadic},
      {"Min", variadic},
      {"Mean", variadic},
      {"Dropout", dropout},
      {"MatMul", matmul},
  };
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
  return emitter.emit(operation);
}

}  // namespace autosp::onnx_io

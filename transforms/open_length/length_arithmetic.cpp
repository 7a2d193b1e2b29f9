#include "transforms/open_length/length_arithmetic.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace autosp::transforms {

using ir::DataType;
using ir::Shape;
using ir::Tensor;

namespace {

constexpr int64_t kFewEntries = 4096;
constexpr const char* kPhase = "length";

LengthForm fixed(int64_t value) { return {.constant = value}; }

std::vector<LengthForm> fixed(const Shape& shape) {
  std::vector<LengthForm> forms;
  for (int64_t extent : shape) forms.push_back(fixed(extent));
  return forms;
}

bool all_constant(const std::vector<LengthForm>& forms) {
  return std::ranges::all_of(forms, &LengthForm::is_constant);
}

bool is_integer_type(DataType dtype) { return ir::is_integer(dtype) || dtype == DataType::kBool; }

// The form of one entry, seen at several lengths; `read` gives it from a tensor.
template <typename Read>
std::optional<LengthForm> form_of(const ConstantSamples& samples, Read&& read) {
  std::vector<int64_t> values;
  for (const Tensor& tensor : samples.tensors) {
    const std::optional<int64_t> value = read(tensor);
    if (!value) return std::nullopt;
    values.push_back(*value);
  }
  return fit(samples.units, values);
}

bool is_uniform(const Tensor& tensor) {
  const size_t size = ir::element_size(tensor.dtype());
  const auto bytes = tensor.bytes();
  for (size_t at = size; at < bytes.size(); at += size) {
    if (std::memcmp(bytes.data(), bytes.data() + at, size) != 0) return false;
  }
  return true;
}

}  // namespace

ValueId LengthArithmetic::node(const std::string& op, std::vector<ValueId> inputs, DataType dtype,
                               const std::vector<LengthForm>& shape, ir::Attributes attributes) {
  Shape here;
  for (const LengthForm& extent : shape) here.push_back(extent.at(reference_));
  const size_t first = graph_.nodes().size();
  const ValueId result = build_.node(op, std::move(inputs), {dtype, std::move(here)},
                                     std::move(attributes), "", "length/" + op);
  graph_.set_phase(NodeId(first), kPhase);
  if (!all_constant(shape)) shapes_[result] = shape;
  return result;
}

ValueId LengthArithmetic::units() {
  if (units_) return units_;
  const std::vector<LengthForm> one = {fixed(1)};
  const auto axis = static_cast<int64_t>(axis_);
  units_ = node("Shape", {source_}, DataType::kInt64, one, {{"start", axis}, {"end", axis + 1}});
  if (extent_.constant != 0) {
    units_ = node("Sub", {units_, build_.int64s({extent_.constant})}, DataType::kInt64, one);
  }
  if (extent_.linear != 1) {
    units_ = node("Div", {units_, build_.int64s({extent_.linear})}, DataType::kInt64, one);
  }
  return units_;
}

ValueId LengthArithmetic::numbers(const std::vector<LengthForm>& forms) {
  std::vector<int64_t> constants;
  std::vector<int64_t> linear;
  std::vector<int64_t> quadratic;
  for (const LengthForm& form : forms) {
    constants.push_back(form.constant);
    linear.push_back(form.linear);
    quadratic.push_back(form.quadratic);
  }
  if (all_constant(forms)) return build_.int64s(constants);
  const auto [known, is_new] = numbers_.try_emplace(forms);
  if (!is_new) return known->second;
  const std::vector<LengthForm> shape = {fixed(static_cast<int64_t>(forms.size()))};
  const auto some = [](const std::vector<int64_t>& values) {
    return std::ranges::any_of(values, [](int64_t value) { return value != 0; });
  };
  const auto binary = [&](const char* op, ValueId x, const std::vector<int64_t>& values) {
    return node(op, {x, build_.int64s(values)}, DataType::kInt64, shape);
  };
  // (quadratic * units + linear) * units + constant
  ValueId result;
  if (some(quadratic)) {
    result = binary("Mul", units(), quadratic);
    if (some(linear)) result = binary("Add", result, linear);
    result = node("Mul", {result, units()}, DataType::kInt64, shape);
  } else {
    result = binary("Mul", units(), linear);
  }
  if (some(constants)) result = binary("Add", result, constants);
  return known->second = result;
}

ValueId LengthArithmetic::scalar(const LengthForm& form) {
  const ValueId one = numbers({form});
  return node("Reshape", {one, build_.int64s({})}, DataType::kInt64, {});
}

ValueId LengthArithmetic::entries(const std::vector<LengthForm>& forms, DataType dtype,
                                  const Shape& shape) {
  ValueId result = numbers(forms);
  if (shape.size() != 1) {
    result = node("Reshape", {result, build_.int64s(shape)}, DataType::kInt64, fixed(shape));
  }
  if (dtype == DataType::kInt64) return result;
  return node("Cast", {result}, dtype, fixed(shape), {{"to", static_cast<int64_t>(dtype)}});
}

std::optional<ValueId> LengthArithmetic::few_entries(const ConstantSamples& samples) {
  const ir::Type& type = samples.tensors[0].type();
  std::vector<LengthForm> forms;
  for (int64_t k = 0; k < type.num_elements(); ++k) {
    const auto form = form_of(samples, [k](const Tensor& tensor) { return integer_at(tensor, k); });
    if (!form) return std::nullopt;
    forms.push_back(*form);
  }
  return entries(forms, type.dtype, type.shape);
}

// A mean's factor: what it is divided by is an integer.
std::optional<ValueId> LengthArithmetic::reciprocals(const ConstantSamples& samples) {
  const ir::Type& type = samples.tensors[0].type();
  if (!ir::is_floating(type.dtype)) return std::nullopt;
  std::vector<LengthForm> forms;
  for (int64_t k = 0; k < type.num_elements(); ++k) {
    const auto form = form_of(samples, [&](const Tensor& tensor) -> std::optional<int64_t> {
      const double divisor = std::round(1 / tensor.value_as_double(k));
      if (!(std::abs(divisor) < 9e15) || divisor == 0) return std::nullopt;
      const Tensor again = Tensor::scalar(type.dtype, 1 / divisor);
      if (again.value_as_double(0) != tensor.value_as_double(k)) return std::nullopt;
      return static_cast<int64_t>(divisor);
    });
    if (!form) return std::nullopt;
    forms.push_back(*form);
  }
  // In double: the divisor itself may have no exact value of the type.
  const ValueId divisors = entries(forms, DataType::kFloat64, type.shape);
  const ValueId result = node("Reciprocal", {divisors}, DataType::kFloat64, fixed(type.shape));
  if (type.dtype == DataType::kFloat64) return result;
  return node("Cast", {result}, type.dtype, fixed(type.shape),
              {{"to", static_cast<int64_t>(type.dtype)}});
}

ValueId LengthArithmetic::expanded(ValueId x, const std::vector<LengthForm>& shape) {
  return node("Expand", {x, numbers(shape)}, build_.dtype(x), shape);
}

std::optional<ValueId> LengthArithmetic::uniform(const ConstantSamples& samples,
                                                 const std::vector<LengthForm>& shape) {
  ConstantSamples entry{.units = samples.units, .tensors = {}};
  for (const Tensor& tensor : samples.tensors) {
    if (tensor.num_elements() == 0 || !is_uniform(tensor)) return std::nullopt;
    const std::vector<int64_t> origin(tensor.shape().size(), 0);
    entry.tensors.push_back(
        tensor.block(origin, Shape(tensor.shape().size(), 1)).reshaped(Shape{1}));
  }
  const Tensor& first = entry.tensors[0];
  if (std::ranges::all_of(entry.tensors,
                          [&](const Tensor& tensor) { return tensor.identical(first); })) {
    return node("ConstantOfShape", {numbers(shape)}, first.dtype(), shape, {{"value", first}});
  }
  const auto value = constant(entry);
  return value ? std::optional(expanded(*value, shape)) : std::nullopt;
}

std::optional<ValueId> LengthArithmetic::grid(const ConstantSamples& samples,
                                              const std::vector<LengthForm>& shape) {
  const auto found = fit_grid(samples);
  if (!found) return std::nullopt;
  const std::vector<LengthForm>& strides = found->strides;
  ValueId sum = numbers({found->offset});
  std::vector<LengthForm> reached = fixed(Shape(shape.size(), 1));
  for (size_t k = 0; k < shape.size(); ++k) {
    if (strides[k] == fixed(0)) continue;
    ValueId along = node("Range", {scalar(fixed(0)), scalar(shape[k]), scalar(fixed(1))},
                         DataType::kInt64, {shape[k]});
    if (strides[k] != fixed(1)) {
      along = node("Mul", {along, numbers({strides[k]})}, DataType::kInt64, {shape[k]});
    }
    std::vector<LengthForm> column = fixed(Shape(shape.size(), 1));
    column[k] = shape[k];
    reached[k] = shape[k];
    if (shape.size() > 1) {
      along = node("Reshape", {along, numbers(column)}, DataType::kInt64, column);
    }
    sum = node("Add", {sum, along}, DataType::kInt64, reached);
  }
  if (found->greatest) {
    sum = node("Min", {sum, numbers({*found->greatest})}, DataType::kInt64, reached);
  }
  if (found->least) {
    sum = node("Max", {sum, numbers({*found->least})}, DataType::kInt64, reached);
  }
  if (reached != shape) sum = expanded(sum, shape);
  const DataType dtype = samples.tensors[0].dtype();
  if (dtype == DataType::kInt64) return sum;
  return node("Cast", {sum}, dtype, shape, {{"to", static_cast<int64_t>(dtype)}});
}

std::optional<ValueId> LengthArithmetic::constant(const ConstantSamples& samples) {
  const ir::Type& type = samples.tensors[0].type();
  std::vector<LengthForm> shape;
  for (size_t k = 0; k < type.rank(); ++k) {
    const auto extent =
        form_of(samples, [k](const Tensor& tensor) { return std::optional(tensor.shape()[k]); });
    if (!extent) return std::nullopt;
    shape.push_back(*extent);
  }
  if (all_constant(shape)) {
    if (type.num_elements() > kFewEntries || type.num_elements() == 0) return std::nullopt;
    if (auto result = few_entries(samples)) return result;
    return reciprocals(samples);
  }
  if (auto result = uniform(samples, shape)) return result;
  return is_integer_type(type.dtype) || ir::is_floating(type.dtype) ? grid(samples, shape)
                                                                    : std::nullopt;
}

}  // namespace autosp::transforms

// Biases: what a value is the sum of.
#include <algorithm>
#include <cmath>

#include "transforms/fuse_attention/dissector.h"

namespace autosp::transforms::fusion {

using ir::Node;
using ir::Tensor;

std::optional<std::pair<double, double>> two_numbers(const GraphFacts& facts, ValueId value) {
  const auto producer = [&](ValueId x) { return x ? facts.graph().producer(x) : nullptr; };
  double factor = 1;
  const Node* node = producer(value);
  while (node != nullptr && !node->is("Where")) {
    if (node->is("Mul") || node->is("Div")) {
      const auto number = facts.uniform(node->input(1));
      if (!number || *number == 0) return std::nullopt;
      factor = node->is("Mul") ? factor * *number : factor / *number;
    } else if (!is_view(*node) && !node->is("Expand")) {
      return std::nullopt;
    }
    node = producer(node->input(0));
  }
  if (node == nullptr) return std::nullopt;
  const auto a = facts.uniform(node->input(1));
  const auto b = facts.uniform(node->input(2));
  if (!a || !b) return std::nullopt;
  const auto rounded = [&](double number) {
    return Tensor::scalar(facts.graph().type(value).dtype, factor * number).value_as_double(0);
  };
  return std::pair{rounded(*a), rounded(*b)};
}

void Dissector::mask_by(double number) {
  if (parts_.number && *parts_.number != number) parts_.several_numbers = true;
  parts_.number = std::min(number, parts_.number.value_or(number));
}

// The summands of `factor` times the value; `factor` is positive.
void Dissector::sum(ValueId value, double factor) {
  if (uniform(value) && std::isfinite(*uniform(value)) &&
      factor * *uniform(value) > kMaskingNumber) {
    return constant_along_rows(*uniform(value) == 0, value);
  }
  const Node* node = graph_.producer(value);
  const Extent extent = extent_of(value);
  if (node == nullptr || !(extent.queries && extent.keys)) {
    if (factor == 1 && hides(before_repeats(value))) return;
    if (extent.queries && extent.keys) {
      if (factor == 1 && known_tensor(facts_, cutout_.original[value.index()])) {
        return read_entries(value, false, true);
      }
      parts_.kept_summand = graph_.name_of(value);
    }
    if (!extent.keys) constant_along_rows(false, value);
    parts_.biases.push_back({.product = {value}, .factor = factor});
    return;
  }
  if (node->is("Add") || node->is("Sum")) return summands(*node, factor);
  const bool floats = is_floating(graph_.type(node->inputs[0]).dtype);
  if (is_view(*node) || node->is("Expand") || (node->is("Cast") && floats)) {
    return sum(node->inputs[0], factor);
  }
  if (node->is("Where")) return masked_sum(*node, factor);
  if (node->is("Mul")) {
    for (const size_t k : {size_t{0}, size_t{1}}) {
      const auto number = uniform(node->inputs[1 - k]);
      if (!number || !(factor * *number < kMaskingNumber)) continue;
      if (masking_bits(node->inputs[k], rounded(factor * *number, value))) return;
    }
  }
  const size_t before = parts_.biases.size();
  if (linear(value, {}, factor)) return;
  parts_.biases.resize(before);
  if (node->is("Mul") || node->is("Div")) {
    const auto number = uniform(node->inputs[1]);
    if (number && *number > 0 && std::isfinite(*number)) {
      return sum(node->inputs[0], node->is("Mul") ? factor * *number : factor / *number);
    }
  }
  stop("'{}' is computed by {}", graph_.name_of(value), node->op);
}

// Where two summands mask by numbers, a row may hold their sum, either, or none.
void Dissector::summands(const Node& node, double factor) {
  const std::optional<double> around = parts_.number;
  std::optional<double> before;
  for (ValueId input : node.inputs) {
    parts_.number.reset();
    sum(input, factor);
    if (!parts_.number) continue;
    if (before && (std::isfinite(*before) || std::isfinite(*parts_.number))) {
      parts_.several_numbers = true;
    }
    before = std::min(*parts_.number, before.value_or(*parts_.number));
  }
  parts_.number = around;
  if (before) mask_by(*before);
}

// As the graph's type has it.
double Dissector::rounded(double number, ValueId value) const {
  return Tensor::scalar(graph_.type(value).dtype, number).value_as_double(0);
}

// A vector that was repeated, for the heads say, says what it said before.
ValueId Dissector::before_repeats(ValueId value) const {
  const Node* node = graph_.producer(value);
  while (node != nullptr && (is_view(*node) || node->is("Expand"))) {
    value = node->inputs[0];
    node = graph_.producer(value);
  }
  return value;
}

// A vector that is 0 or a number which swallows scores is a mask, for beside other masks it says
// which rows see no key. One whose number leaves a part of the scores stays a bias, exact in every
// row.
bool Dissector::hides(ValueId value) {
  const auto numbers = two_numbers(facts_, cutout_.original[value.index()]);
  const Extent extent = extent_of(value);
  if (!numbers) return false;
  const auto [number, other] = std::minmax(numbers->first, numbers->second);
  if (!(number < kMaskingNumber) || other != 0) return false;
  const double epsilon = epsilon_of(graph_.type(value).dtype);
  if (std::isfinite(number) && std::ldexp(epsilon, std::ilogb(number)) < kSwallowingSpacing) {
    return false;
  }
  if (extent.heads) {
    if (std::isfinite(number)) return false;
    stop("'{}' hides other keys for each head", graph_.name_of(value));
  }
  mask_by(number);
  condition(extent.queries ? Literal::Kind::kQueries : Literal::Kind::kKeys, value,
            Comparison::kEqual, 0, true);
  return true;
}

void Dissector::masked_sum(const Node& node, double factor) {
  const auto scaled = [&](ValueId value) {
    auto number = uniform(value);
    if (number) *number = rounded(*number * factor, value);
    return number;
  };
  const auto a = scaled(node.inputs[1]);
  const auto b = scaled(node.inputs[2]);
  if (a && *a < kMaskingNumber && !(b && *b < kMaskingNumber)) {
    mask_by(*a);
    conjunction(node.inputs[0], false);
    return sum(node.inputs[2], factor);
  }
  if (b && *b < kMaskingNumber && !(a && *a < kMaskingNumber)) {
    mask_by(*b);
    conjunction(node.inputs[0], true);
    return sum(node.inputs[1], factor);
  }
  stop("'{}' chooses between biases", graph_.name_of(node.outputs[0]));
}

bool Dissector::masking_bits(ValueId value, double number) {
  bool masked_where = true;
  const Node* node = graph_.producer(value);
  if (node != nullptr && node->is("Sub") && uniform(node->inputs[0]) == 1.0) {
    masked_where = false;
    value = node->inputs[1];
  }
  value = stripped(value);
  if (graph_.type(value).dtype != ir::DataType::kBool) return false;
  mask_by(number);
  conjunction(value, !masked_where);
  return true;
}

bool Dissector::linear(ValueId value, std::vector<ValueId> product, double factor) {
  if (const auto number = uniform(value)) {
    if (product.empty()) constant_along_rows(*number == 0, value);
    if (product.empty()) return true;
    return linear_end(std::move(product), factor * *number);
  }
  const Node* node = graph_.producer(value);
  const Extent extent = extent_of(value);
  if (node == nullptr) {
    if (extent.queries && extent.keys) return false;
    product.push_back(value);
    return linear_end(std::move(product), factor);
  }
  const bool integers = is_integer(graph_.type(node->inputs[0]).dtype);
  if (is_view(*node) || node->is("Expand") || node->is("Cast")) {
    if (node->is("Cast") && !integers && !is_floating(graph_.type(node->inputs[0]).dtype)) {
      return false;
    }
    return linear(node->inputs[0], std::move(product), factor);
  }
  if (node->is("Neg")) return linear(node->inputs[0], std::move(product), -factor);
  if (node->is("Add")) {
    return linear(node->inputs[0], product, factor) && linear(node->inputs[1], product, factor);
  }
  if (node->is("Sub")) {
    return linear(node->inputs[0], product, factor) && linear(node->inputs[1], product, -factor);
  }
  if (node->is("Mul")) {
    for (const size_t k : {size_t{0}, size_t{1}}) {
      const ValueId one = stripped(node->inputs[k]);
      if (const auto number = uniform(one)) {
        return linear(node->inputs[1 - k], std::move(product), factor * *number);
      }
      const Extent other = extent_of(one);
      if (graph_.producer(one) != nullptr || (other.queries && other.keys)) continue;
      product.push_back(one);
      return linear(node->inputs[1 - k], std::move(product), factor);
    }
  }
  return false;
}

bool Dissector::linear_end(std::vector<ValueId> product, double factor) {
  Extent whole;
  for (ValueId value : product) {
    const Extent extent = extent_of(value);
    whole.queries = whole.queries || extent.queries;
    whole.keys = whole.keys || extent.keys;
  }
  if (whole.queries && whole.keys) return false;
  if (!whole.keys) constant_along_rows(factor == 0, product[0]);
  if (whole.queries && rows_.are_rounded) {
    stop("'{}' differs between rows, and 16 bits round what is left", graph_.name_of(product[0]));
  }
  if (whole.keys) parts_.biases.push_back({.product = std::move(product), .factor = factor});
  return true;
}

// What is the same for all keys changes no weight, but where a sink is among them.
void Dissector::constant_along_rows(bool zero, ValueId value) const {
  if (rows_.count && !zero) {
    stop("'{}' is constant along rows, and weighed against a sink", graph_.name_of(value));
  }
}

}  // namespace autosp::transforms::fusion

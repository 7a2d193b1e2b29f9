// Masks: what has to hold for a value to be true.
#include <algorithm>
#include <cmath>

#include "transforms/fuse_attention/dissector.h"

namespace autosp::transforms::fusion {

using ir::Node;
using ir::Tensor;

// A vector is taken apart where that tells which keys are seen, and otherwise taken as it is.
void Dissector::conjunction(ValueId value, bool wanted) {
  const Extent extent = extent_of(value);
  const bool is_bool = graph_.type(value).dtype == ir::DataType::kBool;
  if ((extent.queries && extent.keys) || !is_bool) return open(value, wanted);
  const size_t before = parts_.literals.size();
  try {
    open(value, wanted);
  } catch (const NotUnderstood&) {
    parts_.literals.resize(before);
    leaf(value, extent, wanted);
  }
}

void Dissector::open(ValueId value, bool wanted) {
  if (const auto number = uniform(value)) {
    if ((*number != 0) != wanted) parts_.literals.push_back(nothing());
    return;
  }
  const Node* node = graph_.producer(value);
  const Extent extent = extent_of(value);
  if (node == nullptr) return leaf(value, extent, wanted);
  if (node->is("Not")) return conjunction(node->inputs[0], !wanted);
  if (is_view(*node) || node->is("Expand")) return conjunction(node->inputs[0], wanted);
  if ((node->is("And") && wanted) || (node->is("Or") && !wanted)) {
    conjunction(node->inputs[0], wanted);
    return conjunction(node->inputs[1], wanted);
  }
  if (node->is("And") || node->is("Or")) return either(*node, wanted);
  if (node->is("Cast") && graph_.type(node->inputs[0]).dtype == ir::DataType::kBool) {
    return conjunction(node->inputs[0], wanted);
  }
  if (node->is("Cast") && graph_.type(value).dtype == ir::DataType::kBool) {
    return nonzero(stripped(node->inputs[0]), wanted);
  }
  if (node->is("Where")) return choice(*node, wanted);
  if (const auto comparison = comparison_of(*node)) return compare(*node, *comparison, wanted);
  stop("'{}' is computed by {}", graph_.name_of(value), node->op);
}

// A product of integers is not zero where none of them is; those of 64 bits are taken to fit.
void Dissector::nonzero(ValueId numbers, bool wanted) {
  const Extent held = extent_of(numbers);
  const ir::DataType dtype = graph_.type(numbers).dtype;
  if (dtype == ir::DataType::kBool) return conjunction(numbers, wanted);
  const Node* node = graph_.producer(numbers);
  if (wanted && held.queries && held.keys && node != nullptr && node->is("Mul") &&
      dtype == ir::DataType::kInt64) {
    for (ValueId factor : node->inputs) nonzero(stripped(factor), true);
    return;
  }
  if ((held.queries && held.keys) || held.heads) stop("'{}' is no vector", graph_.name_of(numbers));
  condition(held.queries ? Literal::Kind::kQueries : Literal::Kind::kKeys, numbers,
            Comparison::kEqual, 0, !wanted);
}

std::optional<Literal> Dissector::only_literal(ValueId value, bool wanted) {
  const size_t before = parts_.literals.size();
  conjunction(value, wanted);
  const bool one = parts_.literals.size() == before + 1;
  std::optional<Literal> result;
  if (one) result = parts_.literals.back();
  parts_.literals.resize(before);
  return result;
}

// As in a prefix that every query sees, and causal keys after it.
void Dissector::either(const Node& node, bool wanted) {
  const auto a = only_literal(node.inputs[0], wanted);
  const auto b = only_literal(node.inputs[1], wanted);
  const auto known = [](const std::optional<Literal>& x) {
    return x && x->kind == Literal::Kind::kInterval &&
           std::ranges::all_of(*x->begin, [](int64_t j) { return j == 0; });
  };
  const auto at_run_time = [](const std::optional<Literal>& x) {
    return x && x->kind == Literal::Kind::kEnd && !x->end;
  };
  if (known(a) && known(b)) {
    std::vector<int64_t> end(std::max(a->end->size(), b->end->size()));
    for (size_t r = 0; r < end.size(); ++r) {
      end[r] = std::max((*a->end)[r % a->end->size()], (*b->end)[r % b->end->size()]);
    }
    const SharedIntegers begin = memo_.shared(std::vector<int64_t>(end.size(), 0));
    parts_.literals.push_back(
        {.kind = Literal::Kind::kInterval, .begin = begin, .end = memo_.shared(std::move(end))});
    return;
  }
  const bool a_is_known = known(a) && at_run_time(b);
  if (!a_is_known && !(known(b) && at_run_time(a))) {
    stop("'{}' is computed by {}", graph_.name_of(node.outputs[0]), node.op);
  }
  parts_.literals.push_back(a_is_known ? *b : *a);
  parts_.literals.back().end = a_is_known ? a->end : b->end;
}

void Dissector::choice(const Node& node, bool wanted) {
  const auto a = uniform(node.inputs[1]);
  const auto b = uniform(node.inputs[2]);
  if (wanted && b == 0.0) {
    conjunction(node.inputs[0], true);
    return conjunction(node.inputs[1], true);
  }
  if (wanted && a == 0.0) {
    conjunction(node.inputs[0], false);
    return conjunction(node.inputs[2], true);
  }
  if (!wanted && a && *a != 0) {
    conjunction(node.inputs[0], false);
    return conjunction(node.inputs[2], false);
  }
  if (!wanted && b && *b != 0) {
    conjunction(node.inputs[0], true);
    return conjunction(node.inputs[1], false);
  }
  stop("'{}' chooses between masks", graph_.name_of(node.outputs[0]));
}

Literal Dissector::nothing() const {
  const SharedIntegers none = memo_.shared(std::vector<int64_t>(static_cast<size_t>(queries_), 0));
  return {.kind = Literal::Kind::kInterval, .begin = none, .end = none};
}

void Dissector::leaf(ValueId value, const Extent& extent, bool wanted) {
  const std::string& name = graph_.name_of(value);
  if (extent.queries && extent.keys) return read_entries(value, true, wanted);
  if (extent.heads) stop("'{}' is given over heads", name);
  if (graph_.type(value).dtype != ir::DataType::kBool) stop("'{}' is no mask", name);
  parts_.literals.push_back(
      {.kind = extent.queries ? Literal::Kind::kQueries : Literal::Kind::kKeys,
       .value = value,
       .positive = wanted});
}

bool holds(double a, Comparison comparison, double b) {
  switch (comparison) {
    case Comparison::kLess:
      return a < b;
    case Comparison::kLessOrEqual:
      return a <= b;
    case Comparison::kGreater:
      return a > b;
    case Comparison::kGreaterOrEqual:
      return a >= b;
    case Comparison::kEqual:
      break;
  }
  return a == b;
}

std::string_view name_of(Comparison comparison) {
  switch (comparison) {
    case Comparison::kLess:
      return "Less";
    case Comparison::kLessOrEqual:
      return "LessOrEqual";
    case Comparison::kGreater:
      return "Greater";
    case Comparison::kGreaterOrEqual:
      return "GreaterOrEqual";
    case Comparison::kEqual:
      break;
  }
  return "Equal";
}

std::optional<Comparison> Dissector::comparison_of(const Node& node) {
  for (const Comparison comparison :
       {Comparison::kLess, Comparison::kLessOrEqual, Comparison::kGreater,
        Comparison::kGreaterOrEqual, Comparison::kEqual}) {
    if (node.is(name_of(comparison))) return comparison;
  }
  return std::nullopt;
}

Comparison Dissector::swapped(Comparison comparison) {
  switch (comparison) {
    case Comparison::kLess:
      return Comparison::kGreater;
    case Comparison::kLessOrEqual:
      return Comparison::kGreaterOrEqual;
    case Comparison::kGreater:
      return Comparison::kLess;
    case Comparison::kGreaterOrEqual:
      return Comparison::kLessOrEqual;
    case Comparison::kEqual:
      break;
  }
  return Comparison::kEqual;
}

Comparison Dissector::negated(Comparison comparison) {
  switch (comparison) {
    case Comparison::kLess:
      return Comparison::kGreaterOrEqual;
    case Comparison::kLessOrEqual:
      return Comparison::kGreater;
    case Comparison::kGreater:
      return Comparison::kLessOrEqual;
    case Comparison::kGreaterOrEqual:
      return Comparison::kLess;
    case Comparison::kEqual:
      break;
  }
  return Comparison::kEqual;
}

ValueId Dissector::stripped(ValueId value) const {
  while (const Node* node = graph_.producer(value)) {
    if (!is_view(*node) && !node->is("Expand") && !(node->is("Cast") && keeps_numbers(*node))) {
      break;
    }
    value = node->inputs[0];
  }
  return value;
}

bool Dissector::keeps_numbers(const Node& cast) const {
  const ir::DataType from = graph_.type(cast.inputs[0]).dtype;
  const ir::DataType to = graph_.type(cast.outputs[0]).dtype;
  if (to == ir::DataType::kBool) return from == to;
  if (!is_floating(from)) {
    if (from == ir::DataType::kBool || element_size(to) >= 4) return true;
    return !is_floating(to) && element_size(to) >= element_size(from);
  }
  return is_floating(to) && element_size(to) > element_size(from);
}

void Dissector::compare(const Node& node, Comparison comparison, bool wanted) {
  const std::string& name = graph_.name_of(node.outputs[0]);
  // A mask that was made a number and is compared with one.
  for (const size_t k : {size_t{0}, size_t{1}}) {
    const auto number = uniform(node.inputs[1 - k]);
    const ValueId other = stripped(node.inputs[k]);
    if (!number || graph_.type(other).dtype != ir::DataType::kBool) continue;
    const Comparison of_bit = k == 0 ? comparison : swapped(comparison);
    const bool at_zero = holds(0, of_bit, *number);
    const bool at_one = holds(1, of_bit, *number);
    if (at_zero != at_one) return conjunction(other, wanted == at_one);
    if (at_one != wanted) parts_.literals.push_back(nothing());
    return;
  }
  ValueId left = stripped(node.inputs[0]);
  ValueId right = stripped(node.inputs[1]);
  double shift = 0;  // left comparison right + shift
  if (uniform(left)) {
    std::swap(left, right);
    comparison = swapped(comparison);
  }
  const auto number = uniform(right);
  const Node* difference = graph_.producer(left);
  if (number && difference != nullptr && difference->is("Abs")) {
    return distance(stripped(difference->inputs[0]), wanted ? comparison : negated(comparison),
                    *number, name);
  }
  if (number && difference != nullptr && difference->is("Sub")) {
    shift = *number;
    left = stripped(difference->inputs[0]);
    right = stripped(difference->inputs[1]);
  }
  literal({left, comparison, right, shift}, wanted, name);
}

// A distance is below a number where the difference lies between two.
void Dissector::distance(ValueId difference, Comparison comparison, double number,
                         const std::string& name) {
  const Node* node = graph_.producer(difference);
  const bool below = comparison == Comparison::kLess || comparison == Comparison::kLessOrEqual;
  if (!below || node == nullptr || !node->is("Sub")) {
    stop("'{}' asks for other distances than small ones", name);
  }
  const ValueId left = stripped(node->inputs[0]);
  const ValueId right = stripped(node->inputs[1]);
  literal({left, comparison, right, number}, true, name);
  literal({left, swapped(comparison), right, -number}, true, name);
}

void Dissector::literal(Compared c, bool wanted, const std::string& name) {
  Extent key = extent_of(c.left);
  Extent query = extent_of(c.right);
  // key comparison query + shift
  if (key.queries || query.keys) {
    std::swap(c.left, c.right);
    std::swap(key, query);
    c.comparison = swapped(c.comparison);
    c.shift = -c.shift;
  }
  if (key.queries || query.keys) stop("'{}' compares more than two vectors", name);
  if (key.heads || query.heads) stop("'{}' is given over heads", name);
  const SharedNumbers key_vector = vector_over(c.left, canonical_.keys);
  const SharedNumbers query_vector = vector_over(c.right, canonical_.queries);
  const bool negatable = wanted || c.comparison != Comparison::kEqual;
  if (key_vector && query_vector && negatable) {
    const Comparison asked = wanted ? c.comparison : negated(c.comparison);
    const auto [begin, end] = memo_.compare(key_vector, asked, query_vector, c.shift);
    if (begin) {
      parts_.literals.push_back({.kind = Literal::Kind::kInterval, .begin = begin, .end = end});
      return;
    }
  }
  if (uniform(c.right)) {
    return condition(Literal::Kind::kKeys, c.left, c.comparison, *uniform(c.right) + c.shift,
                     wanted);
  }
  if (uniform(c.left)) {
    return condition(Literal::Kind::kQueries, c.right, swapped(c.comparison),
                     *uniform(c.left) - c.shift, wanted);
  }
  if (!negatable) stop("'{}' asks for what is unequal", name);
  if (!wanted) c.comparison = negated(c.comparison);
  const bool integers =
      is_integer(graph_.type(c.left).dtype) && is_integer(graph_.type(c.right).dtype);
  if (c.comparison == Comparison::kEqual && c.shift == 0 && integers) {
    parts_.literals.push_back(
        {.kind = Literal::Kind::kSameSegment, .value = c.right, .key_segment = c.left});
    return;
  }
  if (key_vector && is_integer(graph_.type(c.right).dtype) && counts_up(*key_vector) &&
      c.shift == std::floor(c.shift)) {
    return bound(c.right, c.comparison, static_cast<int64_t>(c.shift - (*key_vector)[0]), name);
  }
  stop("'{}' compares vectors that are not known before the run", name);
}

void Dissector::condition(Literal::Kind kind, ValueId value, Comparison comparison, double number,
                          bool wanted) {
  const ir::DataType dtype = graph_.type(value).dtype;
  if (Tensor::scalar(dtype, number).value_as_double(0) != number) {
    stop("'{}' is compared with {}, which is no {}", graph_.name_of(value), number,
         ir::name_of(dtype));
  }
  parts_.literals.push_back({.kind = kind,
                             .value = value,
                             .positive = wanted,
                             .condition = Literal::Condition{comparison, number}});
}

bool Dissector::counts_up(const std::vector<double>& vector) {
  for (size_t k = 1; k < vector.size(); ++k) {
    if (vector[k] != vector[0] + static_cast<double>(k)) return false;
  }
  return true;
}

void Dissector::bound(ValueId value, Comparison comparison, int64_t offset,
                      const std::string& name) {
  const auto add = [&](Literal::Kind kind, int64_t by) {
    parts_.literals.push_back({.kind = kind, .value = value, .offset = offset + by});
  };
  switch (comparison) {
    case Comparison::kLess:
      return add(Literal::Kind::kEnd, 0);
    case Comparison::kLessOrEqual:
      return add(Literal::Kind::kEnd, 1);
    case Comparison::kGreater:
      return add(Literal::Kind::kBegin, 1);
    case Comparison::kGreaterOrEqual:
      return add(Literal::Kind::kBegin, 0);
    case Comparison::kEqual:
      break;
  }
  stop("'{}' sees one key per query", name);
}

SharedNumbers Dissector::vector_over(ValueId value, const AtomList& index) const {
  if (const auto number = uniform(value)) return memo_.repeated(*number, sizes_.product(index));
  const ValueId original = cutout_.original[value.index()];
  if (factors_.atoms(value) != index) return read_vector(value, index);
  return memo_.vector(facts_.representative(original), [&] { return read_vector(value, index); });
}

SharedNumbers Dissector::read_vector(ValueId value, const AtomList& index) const {
  const auto tensor = known_tensor(facts_, cutout_.original[value.index()]);
  if (!tensor) return nullptr;
  Block block = block_of(*tensor, value);
  AtomList order;
  for (const AtomId atom : block.order) {
    if (std::ranges::find(index, atom) == index.end()) order.push_back(atom);
  }
  if (block.order != index) block = arranged(block, concat({order, index}), sizes_);
  const auto length = static_cast<size_t>(sizes_.product(index));
  for (size_t k = length; k < block.values.size(); ++k) {
    if (block.values[k] != block.values[k - length]) return nullptr;
  }
  block.values.resize(length);
  return std::make_shared<const std::vector<double>>(std::move(block.values));
}

Block Dissector::block_of(const Tensor& tensor, ValueId value) const {
  Block block{.order = factors_.atoms(value), .values = {}};
  block.values.reserve(static_cast<size_t>(tensor.num_elements()));
  for (int64_t k = 0; k < tensor.num_elements(); ++k) {
    block.values.push_back(tensor.value_as_double(k));
  }
  return block;
}

}  // namespace autosp::transforms::fusion

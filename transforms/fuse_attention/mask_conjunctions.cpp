// Masks: what has to hold for a value to be true.
#include <algorithm>
#include <cmath>

#include "transforms/fuse_attention/dissector.h"

namespace autosp::transforms::fusion {

using ir::Node;
using ir::Tensor;

void Dissector::conjunction(ValueId value, bool wanted) {
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
  if (node->is("Cast") && graph_.type(node->inputs[0]).dtype == ir::DataType::kBool) {
    return conjunction(node->inputs[0], wanted);
  }
  if (node->is("Where")) return choice(*node, wanted);
  if (const auto comparison = comparison_of(*node)) return compare(*node, *comparison, wanted);
  stop("'{}' is computed by {}", graph_.name_of(value), node->op);
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
  const auto n = static_cast<size_t>(queries_);
  return {.kind = Literal::Kind::kInterval,
          .begin = std::vector<int64_t>(n, 0),
          .end = std::vector<int64_t>(n, 0)};
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

std::optional<Comparison> Dissector::comparison_of(const Node& node) {
  static const std::map<std::string, Comparison> kOps = {
      {"Less", Comparison::kLess},
      {"LessOrEqual", Comparison::kLessOrEqual},
      {"Greater", Comparison::kGreater},
      {"GreaterOrEqual", Comparison::kGreaterOrEqual},
      {"Equal", Comparison::kEqual}};
  const auto found = kOps.find(node.op);
  if (!node.domain.empty() || found == kOps.end()) return std::nullopt;
  return found->second;
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
    if (!is_view(*node) && !node->is("Expand") && !node->is("Cast")) break;
    value = node->inputs[0];
  }
  return value;
}

void Dissector::compare(const Node& node, Comparison comparison, bool wanted) {
  const std::string& name = graph_.name_of(node.outputs[0]);
  // A mask that was made a number and is compared with one.
  for (const size_t k : {size_t{0}, size_t{1}}) {
    const auto number = uniform(node.inputs[1 - k]);
    const ValueId other = stripped(node.inputs[k]);
    if (!number || graph_.type(other).dtype != ir::DataType::kBool) continue;
    if (comparison == Comparison::kEqual && (*number == 0 || *number == 1)) {
      return conjunction(other, wanted == (*number == 1));
    }
  }
  if (!wanted) {
    if (comparison == Comparison::kEqual) stop("'{}' asks for what is unequal", name);
    comparison = negated(comparison);
  }
  ValueId left = stripped(node.inputs[0]);
  ValueId right = stripped(node.inputs[1]);
  double shift = 0;  // left comparison right + shift
  if (uniform(left)) {
    std::swap(left, right);
    comparison = swapped(comparison);
  }
  const Node* difference = graph_.producer(left);
  if (uniform(right) && difference != nullptr && difference->is("Sub")) {
    shift = *uniform(right);
    left = stripped(difference->inputs[0]);
    right = stripped(difference->inputs[1]);
  }
  literal(left, comparison, right, shift, name);
}

void Dissector::literal(ValueId left, Comparison comparison, ValueId right, double shift,
                        const std::string& name) {
  if (graph_.producer(left) != nullptr || graph_.producer(right) != nullptr) {
    stop("'{}' compares more than two vectors", name);
  }
  Extent key = extent_of(left);
  Extent query = extent_of(right);
  // key comparison query + shift
  if (key.queries || query.keys) {
    std::swap(left, right);
    std::swap(key, query);
    comparison = swapped(comparison);
    shift = -shift;
  }
  if (key.queries || query.keys || key.heads || query.heads) {
    stop("'{}' compares matrices", name);
  }
  const auto key_vector = vector_over(left, canonical_.keys, 0);
  const auto query_vector = vector_over(right, canonical_.queries, shift);
  if (key_vector && query_vector) {
    if (auto found = compare_vectors(*key_vector, comparison, *query_vector)) {
      parts_.literals.push_back({.kind = Literal::Kind::kInterval,
                                 .begin = std::move(found->begin),
                                 .end = std::move(found->end)});
      return;
    }
  }
  const bool integers = is_integer(graph_.type(left).dtype) && is_integer(graph_.type(right).dtype);
  if (comparison == Comparison::kEqual && shift == 0 && integers) {
    parts_.literals.push_back(
        {.kind = Literal::Kind::kSameSegment, .value = right, .key_segment = left});
    return;
  }
  if (key_vector && is_integer(graph_.type(right).dtype) && counts_up(*key_vector) &&
      shift == std::floor(shift)) {
    return bound(right, comparison, static_cast<int64_t>(shift - (*key_vector)[0]), name);
  }
  stop("'{}' compares vectors that are not known before the run", name);
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

std::optional<std::vector<double>> Dissector::vector_over(ValueId value, const AtomList& index,
                                                          double shift) const {
  std::vector<double> result(static_cast<size_t>(sizes_.product(index)));
  if (const auto number = uniform(value)) {
    std::ranges::fill(result, *number + shift);
    return result;
  }
  const auto tensor = known_tensor(facts_, cutout_.original[value.index()]);
  if (!tensor) return std::nullopt;
  const Block block = block_of(*tensor, value);
  AtomList order;
  for (const AtomId atom : block.order) {
    if (std::ranges::find(index, atom) == index.end()) order.push_back(atom);
  }
  const Block rows = arranged(block, concat({order, index}), sizes_);
  for (size_t k = 0; k < rows.values.size(); ++k) {
    double& entry = result[k % result.size()];
    if (k >= result.size() && rows.values[k] + shift != entry) return std::nullopt;
    entry = rows.values[k] + shift;
  }
  return result;
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

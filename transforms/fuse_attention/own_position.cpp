// Masks that are no vectors, as unions of windows and strides are none: whether each query sees the
// key at its own position at least, so that no row is without a key.
#include <algorithm>
#include <cmath>

#include "transforms/fuse_attention/dissector.h"

namespace autosp::transforms::fusion {

using ir::Node;
using Vector = std::vector<double>;

bool Dissector::sees_own(ValueId value, bool wanted) const {
  if (queries_ != keys_) return false;
  if (const auto number = uniform(value)) return (*number != 0) == wanted;
  const Node* node = graph_.producer(value);
  if (node == nullptr) return false;
  if (node->is("Not")) return sees_own(node->inputs[0], !wanted);
  if (is_view(*node) || node->is("Expand")) return sees_own(node->inputs[0], wanted);
  if (node->is("Cast") && graph_.type(node->inputs[0]).dtype == ir::DataType::kBool) {
    return sees_own(node->inputs[0], wanted);
  }
  if (node->is("And") || node->is("Or")) {
    const bool a = sees_own(node->inputs[0], wanted);
    const bool b = sees_own(node->inputs[1], wanted);
    return node->is("And") == wanted ? a && b : a || b;
  }
  const auto comparison = comparison_of(*node);
  return comparison && compares_own(*node, *comparison, wanted);
}

bool Dissector::compares_own(const Node& node, Comparison comparison, bool wanted) const {
  const auto difference = difference_at_own(node.inputs[0], node.inputs[1]);
  return difference && std::ranges::all_of(*difference, [&](double x) {
           return holds(x, comparison, 0) == wanted;
         });
}

std::optional<Vector> Dissector::difference_at_own(ValueId a, ValueId b) const {
  a = stripped(a);
  b = stripped(b);
  const Extent left = extent_of(a);
  const Extent right = extent_of(b);
  const bool vectors = !(left.queries && left.keys) && !(right.queries && right.keys);
  const bool one_of_each = (left.queries && right.keys) || (left.keys && right.queries);
  const auto source = [&](ValueId x) { return source_of(facts_, cutout_.original[x.index()]); };
  if (vectors && one_of_each && source(a) == source(b)) {
    return Vector(static_cast<size_t>(queries_), 0);
  }
  auto x = at_own_position(a);
  const auto y = at_own_position(b);
  if (!x || !y) return std::nullopt;
  for (size_t k = 0; k < x->size(); ++k) (*x)[k] -= (*y)[k];
  return x;
}

std::optional<Vector> Dissector::at_own_position(ValueId value) const {
  value = stripped(value);
  const Extent extent = extent_of(value);
  if (!(extent.queries && extent.keys)) {
    const auto known = vector_over(value, extent.queries ? canonical_.queries : canonical_.keys);
    return known ? std::optional(*known) : std::nullopt;
  }
  const Node* node = graph_.producer(value);
  if (node == nullptr) return std::nullopt;
  if (node->is("Sub")) return difference_at_own(node->inputs[0], node->inputs[1]);
  if (node->is("Abs")) {
    auto x = at_own_position(node->inputs[0]);
    if (x) std::ranges::transform(*x, x->begin(), [](double one) { return std::fabs(one); });
    return x;
  }
  // Where the dividend is 0, so is the rest, whichever way the division rounds.
  if (node->is("Mod")) {
    const auto x = at_own_position(node->inputs[0]);
    const bool zero = x && std::ranges::all_of(*x, [](double one) { return one == 0; });
    const auto divisor = uniform(stripped(node->inputs[1]));
    return zero && divisor && *divisor != 0 ? x : std::nullopt;
  }
  return std::nullopt;
}

}  // namespace autosp::transforms::fusion

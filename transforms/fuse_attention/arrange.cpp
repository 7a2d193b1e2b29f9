#include "transforms/fuse_attention/arrange.h"

#include <algorithm>

namespace autosp::transforms::fusion {

namespace {

ir::Shape sizes_of(const AtomList& atoms, const LocalFactors& factors) {
  ir::Shape shape;
  for (const AtomId atom : atoms) shape.push_back(factors.size(atom));
  return shape;
}

std::optional<size_t> position(const AtomList& list, AtomId atom) {
  const auto found = std::ranges::find(list, atom);
  if (found == list.end()) return std::nullopt;
  return static_cast<size_t>(found - list.begin());
}

ValueId permuted(ir::Builder& build, ValueId x, const std::vector<int64_t>& permutation) {
  return std::ranges::is_sorted(permutation) ? x : build.transpose(x, permutation);
}

}  // namespace

ValueId arrange(ir::Builder& build, ValueId x, const AtomList& layout,
                const std::vector<AtomList>& groups, const LocalFactors& factors) {
  std::vector<int64_t> permutation;
  ir::Shape held;    // one extent per atom of a group that x has some of; 1 where it lacks the atom
  ir::Shape full;    // the same with those filled
  ir::Shape target;  // one extent per group
  for (const AtomList& group : groups) {
    const bool any =
        std::ranges::any_of(group, [&](AtomId atom) { return position(layout, atom).has_value(); });
    int64_t extent = 1;
    for (const AtomId atom : group) {
      const auto at = position(layout, atom);
      if (at) permutation.push_back(static_cast<int64_t>(*at));
      if (!any) continue;
      held.push_back(at ? factors.size(atom) : 1);
      full.push_back(factors.size(atom));
      extent *= factors.size(atom);
    }
    target.push_back(extent);
  }
  AUTOSP_CHECK(permutation.size() == layout.size(), "a value has an index of no group");
  if (!std::ranges::is_sorted(permutation)) {
    x = build.transpose(build.reshape(x, sizes_of(layout, factors)), permutation);
  }
  if (held != full) x = build.expand(build.reshape(x, held), full);
  return build.reshape(x, target);
}

ValueId arrange_back(ir::Builder& build, ValueId x, const std::vector<AtomList>& groups,
                     const AtomList& layout, const ir::Shape& shape, const LocalFactors& factors) {
  AtomList order;
  for (const AtomList& group : groups) order.insert(order.end(), group.begin(), group.end());
  std::vector<int64_t> permutation;
  for (const AtomId atom : layout) {
    const auto at = position(order, atom);
    AUTOSP_CHECK(at.has_value(), "a result has an index of no group");
    permutation.push_back(static_cast<int64_t>(*at));
  }
  if (!std::ranges::is_sorted(permutation)) {
    x = permuted(build, build.reshape(x, sizes_of(order, factors)), permutation);
  }
  return build.reshape(x, shape);
}

}  // namespace autosp::transforms::fusion

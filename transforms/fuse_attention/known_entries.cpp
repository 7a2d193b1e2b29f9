// Constants over queries and keys, read entry by entry.
#include <algorithm>
#include <cmath>

#include "transforms/fuse_attention/dissector.h"

namespace autosp::transforms::fusion {

void Dissector::read_entries(ValueId value, bool is_mask, bool wanted) {
  const auto tensor = known_tensor(facts_, cutout_.original[value.index()]);
  if (!tensor || tensor->num_elements() > kMostKnownElements) {
    stop("'{}' is given over queries and keys", graph_.name_of(value));
  }
  const Block entries = arranged(
      block_of(*tensor, value),
      [&] {
        AtomList order;
        for (const AtomId atom : canonical_.full()) {
          const AtomList held = factors_.atoms(value);
          const bool position = atom == canonical_.queries[0] || atom == canonical_.keys[0];
          if (position || std::ranges::find(held, atom) != held.end()) order.push_back(atom);
        }
        return order;
      }(),
      sizes_);
  const auto matrix = static_cast<size_t>(queries_ * keys_);
  const size_t copies = entries.values.size() / matrix;
  double number = 0;
  std::vector<bool> visible(entries.values.size());
  for (size_t k = 0; k < visible.size(); ++k) {
    const double entry = entries.values[k];
    visible[k] = is_mask ? (entry != 0) == wanted : entry > kMaskingNumber;
    if (!is_mask && !visible[k]) number = std::min(number, entry);
  }
  if (!is_mask && number != 0) mask_by(number);
  read_mask(value, visible, copies);
  if (!is_mask) read_bias(value, entries, visible, copies);
}

void Dissector::read_mask(ValueId value, const std::vector<bool>& visible, size_t copies) {
  const auto matrix = static_cast<size_t>(queries_ * keys_);
  const bool equal = [&] {
    for (size_t k = matrix; k < visible.size(); ++k) {
      if (visible[k] != visible[k % matrix]) return false;
    }
    return true;
  }();
  if (!equal && extent_of(value).heads)
    stop("in '{}' heads see different keys", graph_.name_of(value));
  RowIntervals all;
  for (size_t copy = 0; copy < (equal ? 1 : copies); ++copy) {
    const auto begin = visible.begin() + static_cast<std::ptrdiff_t>(copy * matrix);
    const std::vector<bool> one(begin, begin + static_cast<std::ptrdiff_t>(matrix));
    const auto found = find_row_intervals(one, queries_, keys_);
    if (!found) stop("in '{}' queries see keys with gaps", graph_.name_of(value));
    all.begin.insert(all.begin.end(), found->begin.begin(), found->begin.end());
    all.end.insert(all.end.end(), found->end.begin(), found->end.end());
    all.keys.insert(all.keys.end(), found->keys.begin(), found->keys.end());
  }
  const bool every_key = std::ranges::all_of(all.keys, [](int64_t seen) { return seen != 0; });
  if (!every_key) {
    parts_.literals.push_back(
        {.kind = Literal::Kind::kKnownKeys, .known = memo_.shared(std::move(all.keys))});
  }
  parts_.literals.push_back({.kind = Literal::Kind::kInterval,
                             .begin = memo_.shared(std::move(all.begin)),
                             .end = memo_.shared(std::move(all.end))});
}

void Dissector::read_bias(ValueId value, const Block& entries, const std::vector<bool>& visible,
                          size_t copies) {
  const auto matrix = static_cast<size_t>(queries_ * keys_);
  AtomList order = entries.order;
  std::erase(order, canonical_.queries[0]);
  Block vectors{.order = order, .values = {}};
  bool any = false;
  for (size_t copy = 0; copy < copies; ++copy) {
    const auto at = static_cast<std::ptrdiff_t>(copy * matrix);
    const auto end = at + static_cast<std::ptrdiff_t>(matrix);
    const auto vector = find_key_vector({entries.values.begin() + at, entries.values.begin() + end},
                                        {visible.begin() + at, visible.begin() + end}, queries_,
                                        keys_, rows_.count || rows_.are_rounded);
    if (!vector) stop("no vector over keys gives '{}'", graph_.name_of(value));
    any = any || std::ranges::any_of(*vector, [](double entry) { return entry != 0; });
    vectors.values.insert(vectors.values.end(), vector->begin(), vector->end());
  }
  if (any) parts_.biases.push_back({.known = std::move(vectors)});
}

}  // namespace autosp::transforms::fusion

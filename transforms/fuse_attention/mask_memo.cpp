// What the layers of a graph have in common: known vectors, and the intervals that come of them.
#include <algorithm>

#include "transforms/fuse_attention/masks.h"

namespace autosp::transforms::fusion {

SharedIntegers MaskMemo::shared(std::vector<int64_t> vector) {
  return *integers_.insert(std::make_shared<const std::vector<int64_t>>(std::move(vector))).first;
}

SharedNumbers MaskMemo::repeated(double number, int64_t length) {
  SharedNumbers& entry = repeated_[{number, length}];
  if (!entry) {
    entry = std::make_shared<const std::vector<double>>(static_cast<size_t>(length), number);
  }
  return entry;
}

MaskMemo::Bounds MaskMemo::compare(const SharedNumbers& key, Comparison comparison,
                                   const SharedNumbers& query, double shift) {
  const auto [entry, is_new] = compared_.try_emplace({key, comparison, query, shift});
  if (is_new) {
    if (auto found = compare_vectors(*key, comparison, *query, shift)) {
      entry->second = {shared(std::move(found->begin)), shared(std::move(found->end))};
    }
  }
  return entry->second;
}

std::shared_ptr<const KnownIntervals> MaskMemo::intersect(const std::vector<Literal>& literals,
                                                          int64_t queries, int64_t keys) {
  std::vector<Bounds> bounds;
  for (const Literal& literal : literals) {
    if (literal.kind == Literal::Kind::kInterval) bounds.emplace_back(literal.begin, literal.end);
  }
  auto& entry = intersections_[{bounds, {queries, keys}}];
  if (entry) return entry;
  auto rows = static_cast<size_t>(queries);
  for (const auto& [begins, ends] : bounds) rows = std::max(rows, begins->size());
  std::vector<int64_t> begin(rows, 0);
  std::vector<int64_t> end(rows, keys);
  for (const auto& [begins, ends] : bounds) {
    for (size_t r = 0; r < rows; ++r) {
      begin[r] = std::max(begin[r], (*begins)[r % begins->size()]);
      end[r] = std::min(end[r], (*ends)[r % ends->size()]);
    }
  }
  KnownIntervals found{.name = name_intervals(begin, end, queries, keys)};
  for (size_t r = 0; r < rows; ++r) {
    const int64_t own = static_cast<int64_t>(r) % queries;
    found.some_empty = found.some_empty || begin[r] >= end[r];
    found.some_miss_own_position = found.some_miss_own_position || begin[r] > own || own >= end[r];
  }
  if (std::ranges::any_of(begin, [](int64_t j) { return j != 0; })) {
    found.begin = shared(std::move(begin));
  }
  if (std::ranges::any_of(end, [&](int64_t j) { return j != keys; })) {
    found.end = shared(std::move(end));
  }
  entry = std::make_shared<const KnownIntervals>(std::move(found));
  return entry;
}

}  // namespace autosp::transforms::fusion

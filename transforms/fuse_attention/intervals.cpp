// Arithmetic on known masks: intervals per row, key vectors.
#include <algorithm>
#include <cmath>

#include "transforms/fuse_attention/masks.h"

namespace autosp::transforms::fusion {

std::optional<RowIntervals> find_row_intervals(const std::vector<bool>& visible, int64_t rows,
                                               int64_t keys) {
  RowIntervals found{.begin = std::vector<int64_t>(static_cast<size_t>(rows), 0),
                     .end = std::vector<int64_t>(static_cast<size_t>(rows), 0),
                     .keys = std::vector<int64_t>(static_cast<size_t>(keys), 0)};
  const auto at = [&](int64_t i, int64_t j) { return visible[static_cast<size_t>(i * keys + j)]; };
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < keys; ++j) {
      if (!at(i, j)) continue;
      found.keys[static_cast<size_t>(j)] = 1;
      int64_t& end = found.end[static_cast<size_t>(i)];
      if (end == 0) found.begin[static_cast<size_t>(i)] = j;
      end = j + 1;
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = found.begin[static_cast<size_t>(i)]; j < found.end[static_cast<size_t>(i)];
         ++j) {
      if (at(i, j) != (found.keys[static_cast<size_t>(j)] != 0)) return std::nullopt;
    }
  }
  return found;
}

std::optional<RowIntervals> compare_vectors(const std::vector<double>& key, Comparison comparison,
                                            const std::vector<double>& query, double shift) {
  if (!std::ranges::is_sorted(key)) return std::nullopt;
  const auto keys = static_cast<int64_t>(key.size());
  RowIntervals found;
  found.begin.reserve(query.size());
  found.end.reserve(query.size());
  int64_t below = 0;    // keys less than the query's number
  int64_t through = 0;  // keys not greater
  double last = -INFINITY;
  for (const double number : query) {
    const double value = number + shift;
    if (std::isnan(value)) return std::nullopt;
    const auto at = [&](int64_t j) { return key[static_cast<size_t>(j)]; };
    if (value >= last) {
      while (below < keys && at(below) < value) ++below;
      while (through < keys && at(through) <= value) ++through;
    } else {
      below = std::ranges::lower_bound(key, value) - key.begin();
      through = std::ranges::upper_bound(key, value) - key.begin();
    }
    last = value;
    int64_t begin = 0;
    int64_t end = keys;
    switch (comparison) {
      case Comparison::kLess:
        end = below;
        break;
      case Comparison::kLessOrEqual:
        end = through;
        break;
      case Comparison::kGreater:
        begin = through;
        break;
      case Comparison::kGreaterOrEqual:
        begin = below;
        break;
      case Comparison::kEqual:
        begin = below;
        end = through;
        break;
    }
    found.begin.push_back(begin);
    found.end.push_back(end);
  }
  return found;
}

std::string name_intervals(const std::vector<int64_t>& begin, const std::vector<int64_t>& end,
                           int64_t queries, int64_t keys) {
  bool full = true;
  bool causal = true;  // the last query sees the last key
  bool from_start = true;
  int64_t window = 0;
  for (size_t r = 0; r < begin.size(); ++r) {
    const int64_t last = static_cast<int64_t>(r) % queries + keys - queries;
    full = full && begin[r] == 0 && end[r] == keys;
    causal = causal && end[r] == last + 1;
    from_start = from_start && begin[r] == 0;
    window = std::max(window, end[r] - begin[r]);
  }
  if (full) return "full";
  if (!causal) {
    const int64_t reach = end[0] - 1;  // of the first query
    for (size_t r = 0; r < begin.size(); ++r) {
      const int64_t own = static_cast<int64_t>(r) % queries;
      if (begin[r] != std::max<int64_t>(0, own - reach) ||
          end[r] != std::min(keys, own + reach + 1)) {
        return "intervals";
      }
    }
    return fmt::format("{} position{} to both sides", reach, reach == 1 ? "" : "s");
  }
  if (from_start) return "causal";
  for (size_t r = 0; r < begin.size(); ++r) {
    if (begin[r] != std::max<int64_t>(0, end[r] - window)) return "intervals";
  }
  return fmt::format("causal, window {}", window);
}

// Rows that share keys fix each other's numbers; rows that share none may differ by any.
std::optional<std::vector<double>> find_key_vector(const std::vector<double>& matrix,
                                                   const std::vector<bool>& visible, int64_t rows,
                                                   int64_t keys, bool rows_count) {
  const auto n = static_cast<size_t>(keys);
  double largest = 0;
  for (size_t k = 0; k < matrix.size(); ++k) {
    if (visible[k]) largest = std::max(largest, std::fabs(matrix[k]));
  }
  std::vector<double> vector(n, 0);
  std::vector<bool> known(n, false);
  std::vector<size_t> open;
  for (size_t i = 0; i < static_cast<size_t>(rows); ++i) open.push_back(i);
  bool start = false;  // no open row shares a key with a settled one: begin anew with any
  while (!open.empty()) {
    std::vector<size_t> waiting;
    bool settled = false;
    for (const size_t i : open) {
      std::optional<double> shift;
      for (size_t j = 0; j < n && !shift; ++j) {
        if (visible[i * n + j] && known[j]) shift = matrix[i * n + j] - vector[j];
      }
      if (!shift && !(start && !settled)) {
        waiting.push_back(i);
        continue;
      }
      settled = true;
      for (size_t j = 0; j < n; ++j) {
        if (!visible[i * n + j]) continue;
        const double entry = matrix[i * n + j] - (rows_count ? 0 : shift.value_or(0));
        if (!known[j]) vector[j] = entry;
        known[j] = true;
        if (std::fabs(entry - vector[j]) > 1e-6 * largest) return std::nullopt;
      }
    }
    start = !settled;
    open = std::move(waiting);
  }
  return vector;
}

}  // namespace autosp::transforms::fusion

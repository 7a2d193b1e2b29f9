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
                                            const std::vector<double>& query) {
  if (!std::ranges::is_sorted(key)) return std::nullopt;
  const auto keys = static_cast<int64_t>(key.size());
  RowIntervals found;
  for (const double value : query) {
    const int64_t below = std::ranges::lower_bound(key, value) - key.begin();
    const int64_t through = std::ranges::upper_bound(key, value) - key.begin();
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
  if (!causal) return "intervals";
  if (from_start) return "causal";
  for (size_t r = 0; r < begin.size(); ++r) {
    if (begin[r] != std::max<int64_t>(0, end[r] - window)) return "intervals";
  }
  return fmt::format("causal, window {}", window);
}

std::optional<std::vector<double>> find_key_vector(const std::vector<double>& matrix,
                                                   const std::vector<bool>& visible, int64_t rows,
                                                   int64_t keys) {
  const auto n = static_cast<size_t>(keys);
  // The row that sees most keys; every other one has to be it plus a number.
  size_t widest = 0;
  int64_t most = -1;
  double largest = 0;
  for (size_t i = 0; i < static_cast<size_t>(rows); ++i) {
    int64_t seen = 0;
    for (size_t j = 0; j < n; ++j) {
      if (!visible[i * n + j]) continue;
      ++seen;
      largest = std::max(largest, std::fabs(matrix[i * n + j]));
    }
    if (seen > most) {
      most = seen;
      widest = i;
    }
  }
  std::vector<double> vector(n, 0);
  for (size_t j = 0; j < n; ++j) {
    if (visible[widest * n + j]) vector[j] = matrix[widest * n + j];
  }
  for (size_t i = 0; i < static_cast<size_t>(rows); ++i) {
    std::optional<double> shift;
    for (size_t j = 0; j < n; ++j) {
      if (!visible[i * n + j]) continue;
      if (!visible[widest * n + j]) return std::nullopt;
      const double difference = matrix[i * n + j] - vector[j];
      if (!shift) shift = difference;
      if (std::fabs(difference - *shift) > 1e-6 * largest) return std::nullopt;
    }
  }
  return vector;
}

}  // namespace autosp::transforms::fusion

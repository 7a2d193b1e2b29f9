#include "cuda/attention_band.h"

#include <algorithm>
#include <vector>

namespace autosp::cuda {

namespace {

// One number per query, for all batches, cut to the keys that there are.
std::optional<std::vector<int64_t>> bounds(const ir::Graph& graph, ValueId id, int64_t keys) {
  if (graph.shape(id)[0] != 1) return std::nullopt;
  auto result = graph.constant_ints(id);
  if (!result || result->empty()) return std::nullopt;
  for (int64_t& bound : *result) bound = std::clamp<int64_t>(bound, 0, keys);
  return result;
}

// Whether bound i is i + shift, cut to the keys.
bool is_diagonal(const std::vector<int64_t>& bounds, int64_t shift, int64_t keys) {
  for (size_t i = 0; i < bounds.size(); ++i) {
    if (bounds[i] != std::clamp<int64_t>(static_cast<int64_t>(i) + shift, 0, keys)) return false;
  }
  return true;
}

}  // namespace

std::optional<Band> band_of(const ir::Graph& graph, ValueId begin, ValueId end, int64_t queries,
                            int64_t keys) {
  Band band;
  if (end) {
    const auto ends = bounds(graph, end, keys);
    if (!ends) return std::nullopt;
    if (std::ranges::min(*ends) < keys) {
      band.after = ends->front() - 1;
      if (*band.after < 0 || !is_diagonal(*ends, *band.after + 1, keys)) return std::nullopt;
    }
  }
  if (begin) {
    const auto begins = bounds(graph, begin, keys);
    if (!begins) return std::nullopt;
    if (std::ranges::max(*begins) > 0) {
      band.before = queries - begins->back();
      if (*band.before < 1 || !is_diagonal(*begins, 1 - *band.before, keys)) return std::nullopt;
      if (queries > keys + *band.before - 1) return std::nullopt;
    }
  }
  return band;
}

}  // namespace autosp::cuda

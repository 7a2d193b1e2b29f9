// Which keys a query sees, where it is the same from query to query: causal attention, a sliding
// window, a window to both sides, or a rank's part of the queries of one of them.
#pragma once

#include <cstdint>
#include <optional>

#include "ir/graph.h"

namespace autosp::cuda {

// Query i sees keys j with i - before < j <= i + after. Absent: all keys to that side.
struct Band {
  std::optional<int64_t> before;  // at least 1
  std::optional<int64_t> after;   // at least 0
  auto operator<=>(const Band&) const = default;
};

// What `begin` and `end`, operands of attention (docs/attention.md), say of so many queries and
// keys. Invalid ids hide nothing. Nullopt where the model does not hold them, where they differ
// from batch to batch or are no band, and where a query would see no key.
std::optional<Band> band_of(const ir::Graph& graph, ValueId begin, ValueId end, int64_t queries,
                            int64_t keys);

}  // namespace autosp::cuda

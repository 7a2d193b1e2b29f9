// How the ranks that share a sequence are divided among what attention lets them split.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace autosp::shard {

// What a model's attention offers. Heads that were not found count as one. Without attention
// nothing limits u, which then splits the sequence alone.
struct AttentionSizes {
  bool found = true;
  int64_t kv_heads = 1;
  int64_t head_groups = 1;     // query heads per KV head
  bool splits_queries = true;  // query positions can be told from keys: axis r is possible
};

// Sizes of the sequence axes of the mesh; sp is their product.
struct SpDivision {
  int64_t r = 1;
  int64_t g = 1;
  int64_t u = 1;
  bool operator==(const SpDivision&) const = default;
};

// Over KV heads (u) as far as heads and sp allow, then over query-head groups (g). What these
// cannot take goes to the query positions (r): least work for the rank that has most first, then
// the fewest ranks on r, which holds whole keys and values. Empty when no division keeps every rank
// busy, which is only so without r.
std::optional<SpDivision> divide_sp(int64_t sp, const AttentionSizes& sizes);

// Every sp up to the query heads that needs no r, in ascending order.
std::vector<int64_t> sp_by_heads_alone(const AttentionSizes& sizes);

// The division that --sp-mesh asks for, by axis name. Throws Error for an unknown axis, a product
// other than sp, more ranks than heads, and r where there are no query positions to split.
SpDivision requested_division(const std::map<std::string, int64_t>& mesh, int64_t sp,
                              const AttentionSizes& sizes);

}  // namespace autosp::shard

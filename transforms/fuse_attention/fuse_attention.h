// Attention fused by meaning: decomposed attention, forward and backward, becomes the operators
// Attention and AttentionGrad of docs/attention.md.
//
// No exporter's pattern is looked for. A region of operators over two sequence dimensions is cut
// out, evaluated in float64 at small sizes as a black box, and replaced only if its results equal
// those of the formulas, on random operands, under random masks and in rows that see no key. Masks
// become vectors: of keys, of segments, of the interval of keys that a query sees. What does not
// verify stays as it is.
#pragma once

#include <string>
#include <vector>

#include "ir/graph.h"
#include "shard/roles.h"

namespace autosp::transforms {

struct AttentionRegion {
  std::string name;  // of the scores, or of the region's first value
  bool fused = false;
  std::string reason;  // why not, when it is not fused
  // Of a fused region.
  bool backward = false;
  int64_t batch = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t queries = 0;
  int64_t keys = 0;
  double scale = 0;
  double softcap = 0;     // 0: none
  double dropout = 0;     // the share of weights that is dropped
  std::string mask;       // "causal", "causal, window 24, key mask", "none"
  std::string dead_rows;  // what rows without a key give
  double error = 0;       // against the formulas, float64

  std::string to_string() const;  // one line
};

struct FusedAttention {
  ir::Graph graph;
  std::vector<AttentionRegion> regions;  // in graph order
};

// Of a canonical graph. `roles` are the graph's; they do not survive it.
FusedAttention fuse_attention(const ir::Graph& graph, const shard::Roles& roles);

}  // namespace autosp::transforms

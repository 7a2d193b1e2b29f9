// A layer of one fused attention, written out forward and backward, to be put on a ring.
#pragma once

#include "shard/plan.h"
#include "support/run_graph.h"

namespace autosp::transforms::ring_layer {

inline constexpr int64_t kBatch = 2;
inline constexpr int64_t kHidden = 10;
inline constexpr int64_t kWidth = 3;

struct Options {
  int64_t sequence = 13;
  int64_t kv_heads = 2;
  int64_t group = 2;
  int64_t window = 0;           // keys that a query sees; 0: all before it
  bool causal = true;           // else no interval
  bool run_time_begin = false;  // the interval's beginning is an input
  bool run_time_end = false;    // or its end
  bool key_mask = false;
  bool segments = false;
  bool key_bias = false;   // [1, heads, 1, keys]
  bool full_bias = false;  // [batch, 1, queries, keys], with -inf
  bool sink = false;
  float softcap = 0;
  const char* dead_rows = "none";
  bool dead_row_gradient = false;
  bool dropout = false;
  ir::DataType dtype = ir::DataType::kFloat32;
};

// loss = sum(t * attention(x)), and the gradients of the projections and of the sink.
ir::Graph build_layer(const Options& options);
shard::Roles roles_of(const ir::Graph& graph);

// Random inputs, of which the masks hide whole blocks from some rows, but no row from all, unless
// the layer says what such rows give.
test::Tensors feeds_of(const ir::Graph& graph, const Options& options);

}  // namespace autosp::transforms::ring_layer

// A Llama training step of any size, written with ir::Builder: RMSNorm, rotary positions, grouped
// queries, causal softmax attention, SwiGLU, cross-entropy over already shifted labels, and the
// backward pass by hand. For benchmarks, which need sizes that no committed graph has; its
// gradients are checked against differences of its loss (test/unit/llama_step_test.cpp).
#pragma once

#include <cstdint>

#include "ir/graph.h"

namespace autosp::bench {

struct LlamaSizes {
  int64_t layers = 32;
  int64_t batch = 1;
  int64_t sequence = 4096;
  int64_t hidden = 4096;
  int64_t heads = 32;
  int64_t kv_heads = 8;
  int64_t inner = 14336;
  int64_t vocabulary = 128256;

  int64_t head_dim() const { return hidden / heads; }
};

// Inputs: input_ids, labels [batch, sequence] (ignored where -100) and the parameters, all float32.
// Outputs: loss, and <parameter>.grad for every parameter.
ir::Graph llama_step(const LlamaSizes& sizes);

}  // namespace autosp::bench

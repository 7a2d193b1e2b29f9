// Attention: blocks of queries, each by whoever is free.
#include "executor/kernels/attention/schedule.h"
#include "executor/workers.h"

namespace autosp::executor::attention {

using reference::AttentionProblem;

namespace {

struct ForwardMemory {
  RowsMemory rows;
  float* query;  // padded copies
  float* key;
  float* value;
  float* scratch;  // [workers][scratch_size]
  int64_t scratch_size;
};

ForwardMemory carve(Carver& carver, const AttentionProblem& s, bool has_segments, int workers,
                    const Functions& functions) {
  ForwardMemory memory{};
  memory.rows = carve_rows(carver, s, has_segments, functions.panel);
  memory.query = carver.take<float>(padded_size(s.batch, s.query_heads, s.queries, s.width));
  memory.key = carver.take<float>(padded_size(s.batch, s.kv_heads, s.keys, s.width));
  memory.value = carver.take<float>(padded_size(s.batch, s.kv_heads, s.keys, s.value_width));
  memory.scratch_size = round_up(functions.forward_scratch(problem_of(s)), 16);
  memory.scratch = carver.take<float>(memory.scratch_size * workers);
  return memory;
}

}  // namespace

int64_t forward_workspace(const ir::Graph& graph, const ir::Node& node, int workers,
                          const Functions& functions) {
  Carver carver(nullptr);
  carve(carver, sizes_of(graph, node, kForwardPositions), node.input(8).valid(), workers,
        functions);
  return carver.bytes();
}

void forward(const KernelCall& call, const Functions& functions) {
  const auto& [node, operands, results] = call.call;
  Problem p = problem_of(reference::attention_problem(call.call, reference::kAttention));
  const AttentionProblem& s = p.sizes;
  Carver carver(call.workspace);
  const ForwardMemory memory =
      carve(carver, s, s.mask.key_segment != nullptr, call.workers->count(), functions);
  p.rows = fill_rows(s, memory.rows, functions.panel);
  p.query = padded(dense(operands[0].data, s.query_heads, s.queries, s.width), s.batch,
                   s.query_heads, s.queries, s.width, memory.query);
  p.key = padded(dense(operands[1].data, s.kv_heads, s.keys, s.width), s.batch, s.kv_heads, s.keys,
                 s.width, memory.key);
  p.value = padded(dense(operands[2].data, s.kv_heads, s.keys, s.value_width), s.batch, s.kv_heads,
                   s.keys, s.value_width, memory.value);
  p.output = dense(results[0].data, s.query_heads, s.queries, s.value_width);
  if (results.size() > 1 && results[1]) p.row_max = static_cast<float*>(results[1].data);
  if (results.size() > 2 && results[2]) p.row_sum = static_cast<float*>(results[2].data);

  const int64_t blocks = p.rows.queries / kQueryBlock;
  call.workers->for_each(s.batch * s.query_heads * blocks, [&](int worker, int64_t task) {
    // Last blocks first: under a causal mask they take longest.
    const int64_t block = blocks - 1 - task % blocks;
    const int64_t head = task / blocks;
    functions.forward(p, head / s.query_heads, head % s.query_heads, block,
                      memory.scratch + worker * memory.scratch_size);
  });
}

}  // namespace autosp::executor::attention

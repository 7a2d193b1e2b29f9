// Attention: blocks of queries, each by whoever is free.
#include "executor/kernels/attention/schedule.h"
#include "executor/workers.h"

namespace autosp::executor::attention {

using reference::AttentionProblem;

namespace {

struct ForwardMemory {
  RowsMemory rows;
  float* sinks;
  uint16_t* packed_values;  // [batch][KV heads][key blocks][packed block]
  float* scratch;           // [workers][scratch_size]
  int64_t scratch_size;
};

int64_t key_blocks(const AttentionProblem& s) { return (s.keys + kKeyBlock - 1) / kKeyBlock; }

ForwardMemory carve(Carver& carver, const Problem& p, bool has_segments, int workers,
                    const Functions& functions) {
  const AttentionProblem& s = p.sizes;
  ForwardMemory memory{};
  memory.rows = carve_rows(carver, s, has_segments, functions.panel);
  memory.sinks = carver.take<float>(s.query_heads);
  if (functions.pack != nullptr) {
    memory.packed_values =
        carver.take<uint16_t>(s.batch * s.kv_heads * key_blocks(s) * functions.packed_block(p));
  }
  memory.scratch_size = round_up(functions.forward_scratch(p), 16);
  memory.scratch = carver.take<float>(memory.scratch_size * workers);
  return memory;
}

void pack_values(Problem& p, uint16_t* packed, const Functions& functions, Workers& workers) {
  if (functions.pack == nullptr) return;
  const int64_t heads = p.sizes.kv_heads;
  const int64_t blocks = key_blocks(p.sizes);
  const int64_t size = functions.packed_block(p);
  workers.for_each(p.sizes.batch * heads * blocks, [&](int /*worker*/, int64_t task) {
    const int64_t head = task / blocks;
    functions.pack(p, head / heads, head % heads, task % blocks, packed + task * size);
  });
  p.packed_values = packed;
}

}  // namespace

int64_t forward_workspace(const ir::Graph& graph, const ir::Node& node, int workers,
                          const Functions& functions) {
  Carver carver(nullptr);
  const Problem p =
      problem_of(sizes_of(graph, node, kForwardPositions), graph.type(node.input(0)).dtype);
  carve(carver, p, node.input(8).valid(), workers, functions);
  return carver.bytes();
}

void forward(const KernelCall& call, const Functions& functions) {
  const auto& [node, operands, results] = call.call;
  Problem p =
      problem_of(reference::attention_problem(call.call, reference::kAttention), operands[0].dtype);
  const AttentionProblem& s = p.sizes;
  Carver carver(call.workspace);
  const ForwardMemory memory =
      carve(carver, p, s.mask.key_segment != nullptr, call.workers->count(), functions);
  p.rows = fill_rows(s, memory.rows, functions.panel);
  p.query = array_of(operands[0]);
  p.key = array_of(operands[1]);
  p.value = array_of(operands[2]);
  p.sink = sinks_of(p, memory.sinks);
  pack_values(p, memory.packed_values, functions, *call.workers);
  p.output = array_of(results[0]);
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

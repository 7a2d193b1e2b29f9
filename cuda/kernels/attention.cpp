// Attention (docs/attention.md) for what cuDNN does not take: any masks, bias, softcap, sinks and
// head widths, and float32.
//
// A block of threads takes kTileRows queries of a head and walks over the keys that any of them
// sees, a tile at a time (FlashAttention-2, arXiv 2307.08691): scores exist for one tile. A row's
// maximum and sum, and its part of the output, are in the registers of the threads that share it.
// Sums are float, in a fixed order.
#include "cuda/kernels/attention_backward.h"
#include "cuda/kernels/attention_reach.h"
#include "cuda/kernels/rows.h"
#include "cuda/kernels/tree.h"

namespace autosp::kernels {

namespace {

template <typename T, int kWidth>
struct Forward {
  static constexpr int kThreads = kTileThreads;
  static constexpr int kKeys = 64;
  using Threads = TileThreads<T>;
  using Scores = TileSum<T, kKeys, Stored::kByColumn>;
  using Output = TileSum<T, kWidth, Stored::kByDepth>;
  static constexpr int kRows = Threads::kRows;

  struct Shared {
    Tile<T, kTileRows, kWidth> query;
    Tile<T, kKeys, kWidth> key;  // and, once there are scores, the values
    Tile<T, kTileRows, kKeys> weight;
    float max[kTileRows][Threads::kOwners];
    float sum[kTileRows][Threads::kOwners];
    QueryTile<kTileRows> queries;
    KeyTile<kKeys> keys;
  };
  struct Registers {
    Scores scores;
    Output output;
    float max[kRows];
    float sum[kRows];
  };
  using Place = typename Inputs<T>::Place;

  T* output;
  float* maxima;  // or null
  float* sums;    // or null
  Inputs<T> in;
  Reaches reaches;

  AUTOSP_DEVICE_ONLY void operator()(Block<Forward>& block) const {
    const Place at = tile_of_queries(in, reaches, block.index());
    const Reach reach = reaches.tile_of(at.batch, at.query);
    block.each([&](int thread, Registers& r) { begin_rows(at, thread, r, block.shared()); });
    for (int first = reach.begin / kKeys * kKeys; first < reach.end; first += kKeys) {
      block.each([&](int thread) { load_keys(at, first, thread, block.shared()); });
      block.each(
          [&](int thread, Registers& r) { find_scores(at, first, thread, r, block.shared()); });
      block.each([&](int thread, Registers& r) {
        weigh(at, first, thread, r, block.shared());
        load_values(at, reach, first, thread, block.shared());
      });
      block.each([&](int thread, Registers& r) { add_values(thread, r, block.shared()); });
    }
    block.each([&](int thread, Registers& r) { write(at, thread, r, block.shared()); });
  }

 private:
  AUTOSP_DEVICE void begin_rows(const Place& at, int thread, Registers& r, Shared& s) const {
    load_tile(s.query, in.query + in.row(at) * in.width,
              count_within(in.queries, at.query, kTileRows), in.width, in.packed, thread);
    s.queries.load(in, reaches, at.batch, at.query, thread);
    r.output.clear();
    AUTOSP_UNROLL
    for (int k = 0; k < kRows; ++k) {
      r.max[k] = in.sink != nullptr ? static_cast<float>(in.sink[at.head]) : -INFINITY;
      r.sum[k] = in.sink != nullptr ? 1.0F : 0.0F;
    }
  }

  AUTOSP_DEVICE void load_keys(const Place& at, int first, int thread, Shared& s) const {
    load_tile(s.key, in.key + in.key_row(at, first) * in.width, count_within(in.keys, first, kKeys),
              in.width, in.packed, thread);
    s.keys.load(in, at.batch, first, thread);
  }

  // And every thread's part of the rows' maxima.
  AUTOSP_DEVICE void find_scores(const Place& at, int first, int thread, Registers& r,
                                 Shared& s) const {
    r.scores.clear();
    r.scores.add(s.query, s.key, padded_depth(in.width), thread);
    AUTOSP_UNROLL
    for (int k = 0; k < kRows; ++k) {
      const int i = Threads::row(thread, k);
      const bool is_dead = s.queries.reach[i].is_dead();
      float max = -INFINITY;
      AUTOSP_UNROLL
      for (int c = 0; c < Scores::kOwn; ++c) {
        const int j = Scores::column(thread, c);
        float& score = r.scores.at[k][c];
        if (!weighs(in, s.queries, i, s.keys, j, first + j)) {
          score = -INFINITY;
        } else if (is_dead && in.dead_rows != DeadRows::kUnmasked) {
          score = in.dead_rows == DeadRows::kUniform ? 0.0F : NAN;
        } else {
          score = in.biased({at.batch, at.head, at.query + i}, first + j, in.capped(score));
        }
        max = Larger()(max, score);
      }
      s.max[i][Threads::owner(thread)] = max;
    }
  }

  // What was summed of a row so far is weighed anew by what its maximum has become.
  AUTOSP_DEVICE void weigh(const Place& at, int first, int thread, Registers& r, Shared& s) const {
    AUTOSP_UNROLL
    for (int k = 0; k < kRows; ++k) {
      const int i = Threads::row(thread, k);
      float max = r.max[k];
      for (int owner = 0; owner < Threads::kOwners; ++owner) max = Larger()(max, s.max[i][owner]);
      const float again = r.max[k] == -INFINITY ? 0.0F : exp(r.max[k] - max);
      r.max[k] = max;
      r.sum[k] *= again;
      AUTOSP_UNROLL
      for (int e = 0; e < Output::kOwn; ++e) r.output.at[k][e] *= again;
      float sum = 0;
      AUTOSP_UNROLL
      for (int c = 0; c < Scores::kOwn; ++c) {
        const int j = Scores::column(thread, c);
        const float score = r.scores.at[k][c];
        float weight = score == -INFINITY ? 0.0F : exp(score - max);
        sum += weight;
        if (weight != 0) weight *= in.kept({at.batch, at.head, at.query + i}, first + j);
        s.weight.at[i][j] = T(weight);
      }
      s.sum[i][Threads::owner(thread)] = sum;
    }
  }

  AUTOSP_DEVICE void load_values(const Place& at, const Reach& reach, int first, int thread,
                                 Shared& s) const {
    load_tile(s.key, in.value + in.key_row(at, first) * in.value_width,
              count_within(in.keys, first, kKeys), in.value_width, in.packed, thread,
              [&](int j) { return may_matter(in, reach, at.batch, first + j); });
  }

  AUTOSP_DEVICE void add_values(int thread, Registers& r, Shared& s) const {
    AUTOSP_UNROLL
    for (int k = 0; k < kRows; ++k) {
      const float* sum = s.sum[Threads::row(thread, k)];
      for (int owner = 0; owner < Threads::kOwners; ++owner) r.sum[k] += sum[owner];
    }
    r.output.add(s.weight, s.key, kKeys, thread);
  }

  AUTOSP_DEVICE void write(const Place& at, int thread, const Registers& r, const Shared& s) const {
    AUTOSP_UNROLL
    for (int k = 0; k < kRows; ++k) {
      const int i = Threads::row(thread, k);
      if (at.query + i >= in.queries) continue;
      const int64_t row = in.row(at) + i;
      const bool fixed = s.queries.reach[i].is_dead() && in.dead_rows != DeadRows::kUnmasked;
      const bool empty = s.queries.reach[i].is_dead() && s.queries.reach[i].end == 0;
      const float scale = empty ? 0.0F : 1 / r.sum[k];
      AUTOSP_UNROLL
      for (int e = 0; e < Output::kOwn; ++e) {
        const int column = Output::column(thread, e);
        if (column >= in.value_width) continue;
        output[row * in.value_width + column] = T(r.output.at[k][e] * scale);
      }
      if (Threads::owner(thread) != 0) continue;
      if (maxima != nullptr) maxima[row] = fixed ? kLowest : r.max[k];
      if (sums != nullptr) sums[row] = fixed ? 0.0F : r.sum[k];
    }
  }
};

bool fits_forward(const ir::Graph& graph, const ir::Node& node) {
  return fits(graph, node, reference::kAttention.query) &&
         has_shared_memory<Forward>(graph, node, reference::kAttention.query);
}

int64_t forward_workspace(const ir::Graph& graph, const ir::Node& node, int /*workers*/) {
  const ir::Shape& query = graph.shape(node.inputs[reference::kAttention.query]);
  const ir::Shape& key = graph.shape(node.inputs[reference::kAttention.query + 1]);
  return reach_bytes(query[0], query[2], key[2]);
}

void attention(const executor::KernelCall& call) {
  const AttentionProblem p = reference::attention_problem(call.call, reference::kAttention);
  const Queue queue(call);
  visit(AttentionTypes{}, call.call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    const Inputs<T> in(call, p, reference::kAttention.query);
    const Reaches reaches = find_reaches(queue, in, call.workspace);
    visit_widths(in.width, in.value_width, [&]<int kWidth>(Width<kWidth>) {
      launch_blocks(queue, p.batch * p.query_heads * reaches.num_tiles,
                    Forward<T, kWidth>{data<T>(call.call.results[0]), data<float>(result(call, 1)),
                                       data<float>(result(call, 2)), in, reaches});
    });
  });
}

constexpr KernelRow kRows[] = {
    {ir::kAutospDomain, "Attention", fits_forward, attention, forward_workspace},
    {ir::kAutospDomain, "AttentionGrad", fits_backward, attention_grad, backward_workspace},
};

}  // namespace

std::span<const KernelRow> attention_rows() { return kRows; }

}  // namespace autosp::kernels

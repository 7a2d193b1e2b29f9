// Query gradients by blocks that take a tile of queries each and walk over keys, key and value
// gradients by blocks that take a tile of keys and walk over the queries of all heads that share
// them. Each finds the weights anew; no two blocks add to one sum, whose order is so fixed.
#include "cuda/kernels/attention_backward.h"

#include "cuda/kernels/tree.h"

namespace autosp::kernels {

namespace {

template <typename T>
struct Delta {
  float* delta;
  const T* output_gradient;
  const T* output;
  int width;
  AUTOSP_DEVICE void operator()(int64_t row) const {
    float sum = 0;
    for (int64_t e = row * width; e < (row + 1) * width; ++e) {
      sum += static_cast<float>(output_gradient[e]) * static_cast<float>(output[e]);
    }
    delta[row] = sum;
  }
};

// A thread's part of a gradient, scaled, as the first `rows` rows of a matrix of that width.
template <typename T, typename Gradient>
AUTOSP_DEVICE void write(T* to, int rows, int width, float scale, int thread, const Gradient& sum) {
  AUTOSP_UNROLL
  for (int k = 0; k < Gradient::kRows; ++k) {
    const int row = Gradient::Threads::row(thread, k);
    if (row >= rows) continue;
    AUTOSP_UNROLL
    for (int c = 0; c < Gradient::kOwn; ++c) {
      const int column = Gradient::column(thread, c);
      if (column < width) {
        to[static_cast<int64_t>(row) * width + column] = T(scale * sum.at[k][c]);
      }
    }
  }
}

template <typename T, int kWidth>
struct QueryGradient {
  static constexpr int kThreads = kTileThreads;
  static constexpr int kKeys = kStep<T, kWidth>;
  using Threads = TileThreads<T>;
  using Products = TileSum<T, kKeys, Stored::kByColumn>;
  using Gradient = TileSum<T, kWidth, Stored::kByDepth>;
  using Place = typename Inputs<T>::Place;

  struct Shared : PairTiles<T, kTileRows, kKeys, kWidth> {
    Tile<T, kTileRows, kKeys> product_gradient;
  };
  struct Registers {
    Products products;  // query . key
    Products dots;      // output's gradient . value
    Gradient gradient;
  };

  T* gradient;
  Inputs<T> in;
  Saved<T> saved;
  Reaches reaches;

  AUTOSP_DEVICE_ONLY void operator()(Block<QueryGradient>& block) const {
    const Place at = tile_of_queries(in, reaches, block.index());
    const Reach reach = reaches.tile_of(at.batch, at.query);
    block.each([&](int thread, Registers& r) {
      block.shared().load_queries(in, reaches, saved, at, thread);
      r.gradient.clear();
    });
    for (int first = reach.begin / kKeys * kKeys; first < reach.end; first += kKeys) {
      block.each([&](int thread) { block.shared().load_keys(in, at, reach, first, thread); });
      block.each([&](int thread, Registers& r) {
        Shared& s = block.shared();
        s.meet(in, at, first, thread, r.products, r.dots, [&](int k, int c, const Pair& pair) {
          s.product_gradient.at[Threads::row(thread, k)][Products::column(thread, c)] =
              T(pair.product_gradient);
        });
      });
      block.each([&](int thread, Registers& r) {
        const Shared& s = block.shared();
        r.gradient.add(s.product_gradient, s.key, kKeys, thread);
      });
    }
    block.each([&](int thread, Registers& r) {
      write(gradient + in.row(at) * in.width, count_within(in.queries, at.query, kTileRows),
            in.width, in.scale, thread, r.gradient);
    });
  }
};

// Rows of its products are keys, columns are queries.
template <typename T, int kWidth>
struct KeyGradients {
  static constexpr int kThreads = kTileThreads;
  static constexpr int kQueries = kStep<T, kWidth>;
  using Threads = TileThreads<T>;
  using Products = TileSum<T, kQueries, Stored::kByColumn>;
  using Gradient = TileSum<T, kWidth, Stored::kByDepth>;
  using Place = typename Inputs<T>::Place;

  struct Shared : PairTiles<T, kQueries, kTileRows, kWidth> {
    Tile<T, kTileRows, kQueries> weight;
    Tile<T, kTileRows, kQueries> product_gradient;
  };
  struct Registers {
    Products products;
    Products dots;
    Gradient key_gradient;
    Gradient value_gradient;
  };

  T* key_gradient;
  T* value_gradient;
  Inputs<T> in;
  Saved<T> saved;
  Reaches reaches;

  AUTOSP_DEVICE_ONLY void operator()(Block<KeyGradients>& block) const {
    const int64_t tiles = tiles_of(in.keys);
    const int64_t first = block.index() % tiles * kTileRows;
    const int64_t kv_head = block.index() / tiles % in.kv_heads;
    const int64_t batch = block.index() / tiles / in.kv_heads;
    // A key spoils its own gradients alone.
    const Reach every_key{0, static_cast<int>(in.keys)};
    block.each([&](int thread, Registers& r) {
      block.shared().load_keys(in, {batch, kv_head * in.group, 0}, every_key, first, thread);
      r.key_gradient.clear();
      r.value_gradient.clear();
    });
    for (int64_t head = kv_head * in.group; head < (kv_head + 1) * in.group; ++head) {
      for (int64_t query = 0; query < in.queries; query += kQueries) {
        const Reach reach = reaches.tile_of(batch, query);
        if (reach.end <= first || reach.begin >= first + kTileRows) continue;
        add_queries({batch, head, query}, first, block);
      }
    }
    block.each([&](int thread, Registers& r) {
      const int64_t row = (batch * in.kv_heads + kv_head) * in.keys + first;
      const int count = count_within(in.keys, first, kTileRows);
      write(key_gradient + row * in.width, count, in.width, in.scale, thread, r.key_gradient);
      write(value_gradient + row * in.value_width, count, in.value_width, 1, thread,
            r.value_gradient);
    });
  }

 private:
  AUTOSP_DEVICE_ONLY void add_queries(const Place& at, int64_t first,
                                      Block<KeyGradients>& block) const {
    block.each([&](int thread) { block.shared().load_queries(in, reaches, saved, at, thread); });
    block.each([&](int thread, Registers& r) { meet(at, first, thread, r, block.shared()); });
    block.each([&](int thread, Registers& r) {
      const Shared& s = block.shared();
      r.key_gradient.add(s.product_gradient, s.query, kQueries, thread);
      r.value_gradient.add(s.weight, s.output_gradient, kQueries, thread);
    });
  }

  AUTOSP_DEVICE void meet(const Place& at, int64_t first, int thread, Registers& r,
                          Shared& s) const {
    r.products.clear();
    r.products.add(s.key, s.query, padded_depth(in.width), thread);
    r.dots.clear();
    r.dots.add(s.value, s.output_gradient, padded_depth(in.value_width), thread);
    AUTOSP_UNROLL
    for (int k = 0; k < Threads::kRows; ++k) {
      const int j = Threads::row(thread, k);
      AUTOSP_UNROLL
      for (int c = 0; c < Products::kOwn; ++c) {
        const int i = Products::column(thread, c);
        const Pair pair = pair_of(in, s.queries, i, s.keys, j, {at.batch, at.head, at.query + i},
                                  first + j, r.products.at[k][c], r.dots.at[k][c]);
        s.weight.at[j][i] = T(pair.weight);
        s.product_gradient.at[j][i] = T(pair.product_gradient);
      }
    }
  }
};

// An entry of the sink's gradient, a head's, per row of launch_rows().
template <typename T>
struct SinkGradient {
  struct Shared {
    float sum[kLanes];
  };
  T* gradient;
  Inputs<T> in;
  Saved<T> saved;
  AUTOSP_DEVICE int phases() const { return kTreePhases + 2; }
  AUTOSP_DEVICE void operator()(int64_t head, int lane, int phase, Shared& s) const {
    if (phase == 0) {
      float total = 0;
      const auto sink = static_cast<float>(in.sink[head]);
      for (int64_t k = lane; k < in.batch * in.queries; k += kLanes) {
        const int64_t row = in.row({k / in.queries, head, k % in.queries});
        total -= exp(sink - saved.maxima[row]) / saved.sums[row] * saved.delta[row];
      }
      s.sum[lane] = total;
    } else if (phase <= kTreePhases) {
      combine_tree(s.sum, lane, phase - 1, Add());
    } else if (lane == 0) {
      gradient[head] = T(s.sum[0]);
    }
  }
};

template <typename T>
void differentiate(const executor::KernelCall& call, const AttentionProblem& p) {
  const auto& operands = call.call.operands;
  const Queue queue(call);
  Inputs<T> in(call, p, reference::kAttentionGrad.query);
  in.packed = in.packed && aligned_for<T>(operands[0].data, kTilePack<T>);
  const int64_t rows = p.batch * p.query_heads * p.queries;
  auto* delta = reinterpret_cast<float*>(call.workspace + reach_bytes(p.batch, p.queries, p.keys));
  const Reaches reaches = find_reaches(queue, in, call.workspace);
  const Saved<T> saved{data<T>(operands[0]), data<T>(operands[4]), data<float>(operands[5]),
                       data<float>(operands[6]), delta};
  launch(queue, rows, Delta<T>{delta, saved.output_gradient, saved.output, in.value_width});
  visit_widths(in.width, in.value_width, [&]<int kWidth>(Width<kWidth>) {
    launch_blocks(queue, p.batch * p.query_heads * reaches.num_tiles,
                  QueryGradient<T, kWidth>{data<T>(call.call.results[0]), in, saved, reaches});
    launch_blocks(queue, p.batch * p.kv_heads * tiles_of(p.keys),
                  KeyGradients<T, kWidth>{data<T>(call.call.results[1]),
                                          data<T>(call.call.results[2]), in, saved, reaches});
  });
  if (const auto& bias = result(call, 3)) {
    bias_gradient(queue, in, saved, reaches, *bias.shape, data<T>(bias));
  }
  if (const auto& sink = result(call, 4)) {
    launch_rows(queue, p.query_heads, SinkGradient<T>{data<T>(sink), in, saved});
  }
}

}  // namespace

bool fits_backward(const ir::Graph& graph, const ir::Node& node) {
  constexpr size_t kQuery = reference::kAttentionGrad.query;
  return fits(graph, node, kQuery) && has_shared_memory<QueryGradient>(graph, node, kQuery) &&
         has_shared_memory<KeyGradients>(graph, node, kQuery) &&
         (!node.output(3) || bias_gradient_fits(graph, node));
}

int64_t backward_workspace(const ir::Graph& graph, const ir::Node& node, int /*workers*/) {
  const ir::Shape& query = graph.shape(node.inputs[reference::kAttentionGrad.query]);
  const ir::Shape& key = graph.shape(node.inputs[reference::kAttentionGrad.query + 1]);
  const int64_t rows = query[0] * query[1] * query[2];
  return reach_bytes(query[0], query[2], key[2]) + rows * static_cast<int64_t>(sizeof(float));
}

void attention_grad(const executor::KernelCall& call) {
  const AttentionProblem p = reference::attention_problem(call.call, reference::kAttentionGrad);
  visit(AttentionTypes{}, call.call.operands[0].dtype,
        [&]<typename T>(std::type_identity<T>) { differentiate<T>(call, p); });
}

}  // namespace autosp::kernels

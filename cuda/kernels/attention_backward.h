// The gradient of attention: a row of the table of attention.cpp, and what its kernels share.
#pragma once

#include "cuda/kernels/attention_reach.h"
#include "executor/kernel_table.h"

namespace autosp::kernels {

bool fits_backward(const ir::Graph& graph, const ir::Node& node);
int64_t backward_workspace(const ir::Graph& graph, const ir::Node& node, int workers);
void attention_grad(const executor::KernelCall& call);

// What the forward pass has left, and delta = dO . O of every row.
template <typename T>
struct Saved {
  const T* output_gradient;
  const T* output;
  const float* maxima;
  const float* sums;
  const float* delta;
};

// Steps along the other side take so many queries or keys: what four tiles leave room for.
template <typename T, int kWidth>
inline constexpr int kStep = sizeof(T) == 4 && kWidth > 128 ? 32 : 64;

// A tile of queries, with what their rows have left.
template <int kCount>
struct SavedTile : QueryTile<kCount> {
  float max[kCount];
  float sum[kCount];
  float delta[kCount];

  template <typename T>
  AUTOSP_DEVICE void load(const Inputs<T>& in, const Reaches& reaches, const Saved<T>& saved,
                          const typename Inputs<T>::Place& at, int thread) {
    QueryTile<kCount>::load(in, reaches, at.batch, at.query, thread);
    for (int i = thread; i < kCount && at.query + i < in.queries; i += kTileThreads) {
      const int64_t row = in.row(at) + i;
      max[i] = saved.maxima[row];
      sum[i] = saved.sums[row];
      delta[i] = saved.delta[row];
    }
  }
};

// What a query and a key have to do with each other.
struct Pair {
  float weight = 0;            // after dropout
  float bias_gradient = 0;     // of the score, after the softcap
  float product_gradient = 0;  // of query . key, still to be scaled
};

// Of query i and key j of their tiles; `at` is the query, `key` the key among all. `product` is
// query . key, and `dot` the output's gradient . value.
template <typename T, int kQueries, int kKeys>
AUTOSP_DEVICE Pair pair_of(const Inputs<T>& in, const SavedTile<kQueries>& queries, int i,
                           const KeyTile<kKeys>& keys, int j, const typename Inputs<T>::Place& at,
                           int64_t key, float product, float dot) {
  Pair pair;
  if (!weighs(in, queries, i, keys, j, key)) return pair;
  const bool is_dead = queries.reach[i].is_dead();
  const float capped = in.capped(product);
  const float undropped = is_dead && in.dead_rows != DeadRows::kUnmasked
                              ? dead_weight(in.dead_rows, in.keys)
                              : exp(in.biased(at, key, capped) - queries.max[i]) / queries.sum[i];
  const float kept = in.kept(at, key);
  pair.weight = undropped * kept;
  if (is_dead && !in.dead_row_gradient) return pair;
  const float tanh_of = in.softcap == 0 ? 0.0F : capped / in.softcap;
  pair.bias_gradient = undropped * (kept * dot - queries.delta[i]);
  pair.product_gradient = pair.bias_gradient * (1 - tanh_of * tanh_of);
  return pair;
}

// What the weights of a tile of queries and one of keys, and their gradients, are computed from.
template <typename T, int kQueries, int kKeys, int kWidth>
struct PairTiles {
  Tile<T, kQueries, kWidth> query;
  Tile<T, kQueries, kWidth> output_gradient;
  Tile<T, kKeys, kWidth> key;
  Tile<T, kKeys, kWidth> value;
  SavedTile<kQueries> queries;
  KeyTile<kKeys> keys;

  // From query `at` on.
  AUTOSP_DEVICE void load_queries(const Inputs<T>& in, const Reaches& reaches,
                                  const Saved<T>& saved, const typename Inputs<T>::Place& at,
                                  int thread) {
    const int count = count_within(in.queries, at.query, kQueries);
    const int64_t row = in.row(at);
    const auto weighs = [&](int i) { return reaches.row(at.batch, at.query + i).end > 0; };
    load_tile(query, in.query + row * in.width, count, in.width, in.packed, thread, weighs);
    load_tile(output_gradient, saved.output_gradient + row * in.value_width, count, in.value_width,
              in.packed, thread, weighs);
    queries.load(in, reaches, saved, at, thread);
  }
  // From key `first` on, of the batch and for the head of `at`; `reach` is the queries'.
  AUTOSP_DEVICE void load_keys(const Inputs<T>& in, const typename Inputs<T>::Place& at,
                               const Reach& reach, int64_t first, int thread) {
    const int count = count_within(in.keys, first, kKeys);
    const int64_t row = in.key_row(at, first);
    const auto matters = [&](int j) { return may_matter(in, reach, at.batch, first + j); };
    load_tile(key, in.key + row * in.width, count, in.width, in.packed, thread, matters);
    load_tile(value, in.value + row * in.value_width, count, in.value_width, in.packed, thread,
              matters);
    keys.load(in, at.batch, first, thread);
  }

  // Queries by rows, keys by columns: use(k, c, pair) for a thread's own places of the products.
  template <typename Products, typename Use>
  AUTOSP_DEVICE_ONLY void meet(const Inputs<T>& in, const typename Inputs<T>::Place& at,
                               int64_t first, int thread, Products& products, Products& dots,
                               Use use) const {
    products.clear();
    products.add(query, key, padded_depth(in.width), thread);
    dots.clear();
    dots.add(output_gradient, value, padded_depth(in.value_width), thread);
    AUTOSP_UNROLL
    for (int k = 0; k < Products::kRows; ++k) {
      const int i = Products::Threads::row(thread, k);
      AUTOSP_UNROLL
      for (int c = 0; c < Products::kOwn; ++c) {
        const int j = Products::column(thread, c);
        use(k, c,
            pair_of(in, queries, i, keys, j, {at.batch, at.head, at.query + i}, first + j,
                    products.at[k][c], dots.at[k][c]));
      }
    }
  }
};

// Whether the device has the memory for bias_gradient().
bool bias_gradient_fits(const ir::Graph& graph, const ir::Node& node);

// Queues the gradient of the bias, in the bias's shape: what it broadcasts over is summed.
template <typename T>
void bias_gradient(const Queue& queue, const Inputs<T>& in, const Saved<T>& saved,
                   const Reaches& reaches, const ir::Shape& shape, T* gradient);

}  // namespace autosp::kernels

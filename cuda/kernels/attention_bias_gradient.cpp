// The gradient of attention's bias. A block takes a tile of it, and adds up what it broadcasts
// over: batches and heads, and where the bias has one row or one column, all tiles of the scores.
#include "cuda/kernels/attention_backward.h"

namespace autosp::kernels {

namespace {

template <typename T, int kWidth>
struct BiasGradient {
  static constexpr int kThreads = kTileThreads;
  static constexpr int kKeys = kStep<T, kWidth>;
  using Threads = TileThreads<T>;
  using Products = TileSum<T, kKeys, Stored::kByColumn>;
  using Place = typename Inputs<T>::Place;

  struct Shared : PairTiles<T, kTileRows, kKeys, kWidth> {
    float sum[kTileRows][kKeys + 1];
  };
  struct Registers {
    Products products;
    Products dots;
    Products sum;
  };
  // Places along an axis that a block takes: its own tile or, where the bias has one, all.
  struct Span {
    int64_t begin, end;
  };

  T* gradient;
  int64_t extent[4];  // of the bias
  int64_t row_blocks, column_blocks;
  Inputs<T> in;
  Saved<T> saved;
  Reaches reaches;

  AUTOSP_DEVICE_ONLY void operator()(Block<BiasGradient>& block) const {
    int64_t rest = block.index();
    const Span columns = span(3, in.keys, kKeys, column_blocks, rest);
    const Span rows = span(2, in.queries, kTileRows, row_blocks, rest);
    const Span heads = span(1, in.query_heads, 1, extent[1], rest);
    const Span batches = span(0, in.batch, 1, extent[0], rest);
    block.each([&](int /*thread*/, Registers& r) { r.sum.clear(); });
    for (int64_t batch = batches.begin; batch < batches.end; ++batch) {
      for (int64_t head = heads.begin; head < heads.end; ++head) {
        for (int64_t query = rows.begin; query < rows.end; query += kTileRows) {
          add_row({batch, head, query}, columns, block);
        }
      }
    }
    block.each([&](int thread, Registers& r) { spread(thread, r, block.shared()); });
    block.each([&](int thread) {
      write({batches.begin, heads.begin, rows.begin}, columns.begin, thread, block.shared());
    });
  }

 private:
  // Takes the block's number along an axis off `number`.
  AUTOSP_DEVICE Span span(int axis, int64_t extent_of_scores, int64_t tile, int64_t blocks,
                          int64_t& number) const {
    const int64_t at = number % blocks;
    number /= blocks;
    if (extent[axis] == 1) return {0, extent_of_scores};
    const int64_t end = (at + 1) * tile;
    return {at * tile, end < extent_of_scores ? end : extent_of_scores};
  }

  AUTOSP_DEVICE_ONLY void add_row(const Place& at, const Span& columns,
                                  Block<BiasGradient>& block) const {
    const Reach reach = reaches.tile_of(at.batch, at.query);
    bool is_loaded = false;
    for (int64_t first = columns.begin; first < columns.end; first += kKeys) {
      if (reach.end <= first || reach.begin >= first + kKeys) continue;
      const bool needs_queries = !is_loaded;
      is_loaded = true;
      block.each([&](int thread) {
        if (needs_queries) block.shared().load_queries(in, reaches, saved, at, thread);
        block.shared().load_keys(in, at, reach, first, thread);
      });
      block.each([&](int thread, Registers& r) {
        block.shared().meet(
            in, at, first, thread, r.products, r.dots,
            [&](int k, int c, const Pair& pair) { r.sum.at[k][c] += pair.bias_gradient; });
      });
    }
  }

  AUTOSP_DEVICE void spread(int thread, const Registers& r, Shared& s) const {
    AUTOSP_UNROLL
    for (int k = 0; k < Threads::kRows; ++k) {
      AUTOSP_UNROLL
      for (int c = 0; c < Products::kOwn; ++c) {
        s.sum[Threads::row(thread, k)][Products::column(thread, c)] = r.sum.at[k][c];
      }
    }
  }

  AUTOSP_DEVICE void write(const Place& at, int64_t first, int thread, const Shared& s) const {
    const int64_t rows = extent[2] == 1 ? 1 : extent[2] - at.query;
    const int64_t columns = extent[3] == 1 ? 1 : extent[3] - first;
    const int64_t plane = extent[1] == 1 ? 0 : at.head;
    const int64_t matrix = (extent[0] == 1 ? 0 : at.batch) * extent[1] + plane;
    for (int place = thread; place < kTileRows * kKeys; place += kTileThreads) {
      const int i = place / kKeys;
      const int j = place % kKeys;
      if (i >= rows || j >= columns) continue;
      float sum = 0;
      for (int row = i; row < (extent[2] == 1 ? kTileRows : i + 1); ++row) {
        for (int column = j; column < (extent[3] == 1 ? kKeys : j + 1); ++column) {
          sum += s.sum[row][column];
        }
      }
      gradient[(matrix * extent[2] + at.query + i) * extent[3] + first + j] = T(sum);
    }
  }
};

}  // namespace

bool bias_gradient_fits(const ir::Graph& graph, const ir::Node& node) {
  return has_shared_memory<BiasGradient>(graph, node, reference::kAttentionGrad.query);
}

template <typename T>
void bias_gradient(const Queue& queue, const Inputs<T>& in, const Saved<T>& saved,
                   const Reaches& reaches, const ir::Shape& shape, T* gradient) {
  visit_widths(in.width, in.value_width, [&]<int kWidth>(Width<kWidth>) {
    using Body = BiasGradient<T, kWidth>;
    const auto blocks = [](int64_t extent, int tile) { return (extent + tile - 1) / tile; };
    const int64_t rows = blocks(shape[2], kTileRows);
    const int64_t columns = blocks(shape[3], Body::kKeys);
    launch_blocks(
        queue, shape[0] * shape[1] * rows * columns,
        Body{
            gradient, {shape[0], shape[1], shape[2], shape[3]}, rows, columns, in, saved, reaches});
  });
}

template void bias_gradient(const Queue&, const Inputs<float>&, const Saved<float>&, const Reaches&,
                            const ir::Shape&, float*);
template void bias_gradient(const Queue&, const Inputs<Float16>&, const Saved<Float16>&,
                            const Reaches&, const ir::Shape&, Float16*);
template void bias_gradient(const Queue&, const Inputs<BFloat16>&, const Saved<BFloat16>&,
                            const Reaches&, const ir::Shape&, BFloat16*);

}  // namespace autosp::kernels

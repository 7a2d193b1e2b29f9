#include "cuda/kernels/attention_reach.h"

namespace autosp::kernels {

namespace {

template <typename T>
struct RowReach {
  Reach* reach;
  Inputs<T> in;
  AUTOSP_DEVICE void operator()(int64_t row) const {
    const int64_t batch = row / in.queries;
    const int64_t i = row % in.queries;
    int64_t begin = 0;
    int64_t end = in.keys;
    if (in.begin != nullptr) begin = within(in.begin[batch * in.begin_stride + i], 0, end);
    if (in.end != nullptr) end = within(in.end[batch * in.end_stride + i], begin, end);
    while (begin < end && !in.unmasked(batch, i, begin)) ++begin;
    while (begin < end && !in.unmasked(batch, i, end - 1)) --end;
    if (begin < end) {
      reach[row] = {static_cast<int>(begin), static_cast<int>(end)};
    } else if (in.sink != nullptr) {
      reach[row] = {0, 0};
    } else {
      reach[row] = {-1, dead_rows_weigh(in.dead_rows) ? static_cast<int>(in.keys) : 0};
    }
  }
  AUTOSP_DEVICE static int64_t within(int64_t x, int64_t low, int64_t high) {
    return x < low ? low : x > high ? high : x;
  }
};

struct TileReach {
  Reach* tiles;
  Reaches reaches;
  AUTOSP_DEVICE void operator()(int64_t index) const {
    const int64_t batch = index / reaches.num_tiles;
    const int64_t first = index % reaches.num_tiles * kTileRows;
    Reach all = {0, 0};
    for (int64_t i = first; i < first + kTileRows && i < reaches.queries; ++i) {
      const Reach row = reaches.row(batch, i);
      if (row.end <= 0) continue;
      const int begin = row.is_dead() ? 0 : row.begin;
      all = all.end == 0 ? Reach{begin, row.end}
                         : Reach{begin < all.begin ? begin : all.begin,
                                 row.end > all.end ? row.end : all.end};
    }
    tiles[index] = all;
  }
};

}  // namespace

int64_t reach_bytes(int64_t batch, int64_t queries) {
  return batch * (queries + tiles_of(queries)) * static_cast<int64_t>(sizeof(Reach));
}

template <typename T>
Reaches find_reaches(const Queue& queue, const Inputs<T>& in, std::byte* memory) {
  auto* rows = reinterpret_cast<Reach*>(memory);
  Reach* tiles = rows + in.batch * in.queries;
  const Reaches reaches{rows, tiles, in.queries, tiles_of(in.queries)};
  launch(queue, in.batch * in.queries, RowReach<T>{rows, in});
  launch(queue, in.batch * reaches.num_tiles, TileReach{tiles, reaches});
  return reaches;
}

template Reaches find_reaches(const Queue&, const Inputs<float>&, std::byte*);
template Reaches find_reaches(const Queue&, const Inputs<Float16>&, std::byte*);
template Reaches find_reaches(const Queue&, const Inputs<BFloat16>&, std::byte*);

}  // namespace autosp::kernels

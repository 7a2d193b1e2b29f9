#include "cuda/kernels/attention_reach.h"

namespace autosp::kernels {

namespace {

// Of kTileRows keys, those that the key mask lets be seen.
struct KeySummary {
  int64_t least_segment;
  int64_t greatest_segment;
  bool any;
};

template <typename T>
struct Summarize {
  KeySummary* summaries;
  Inputs<T> in;
  AUTOSP_DEVICE void operator()(int64_t index) const {
    const int64_t batch = index / tiles_of(in.keys);
    const int64_t first = index % tiles_of(in.keys) * kTileRows;
    KeySummary all{0, 0, false};
    for (int64_t j = first; j < first + kTileRows && j < in.keys; ++j) {
      if (in.key_mask != nullptr && !in.key_mask[batch * in.key_stride + j]) continue;
      const int64_t segment =
          in.key_segment == nullptr ? 0 : in.key_segment[batch * in.key_segment_stride + j];
      if (!all.any || segment < all.least_segment) all.least_segment = segment;
      if (!all.any || segment > all.greatest_segment) all.greatest_segment = segment;
      all.any = true;
    }
    summaries[index] = all;
  }
};

// Keys are looked at one by one where their tile's summary does not exclude that they are seen.
template <typename T>
struct RowReach {
  Reach* reach;
  const KeySummary* summaries;
  Inputs<T> in;
  AUTOSP_DEVICE void operator()(int64_t row) const {
    const int64_t batch = row / in.queries;
    const int64_t i = row % in.queries;
    int64_t begin = 0;
    int64_t end = in.keys;
    if (in.begin != nullptr) begin = within(in.begin[batch * in.begin_stride + i], 0, end);
    if (in.end != nullptr) end = within(in.end[batch * in.end_stride + i], begin, end);
    while (begin < end && !in.unmasked(batch, i, begin)) {
      begin += begin % kTileRows == 0 && !may_see(batch, i, begin) ? kTileRows : 1;
    }
    while (begin < end && !in.unmasked(batch, i, end - 1)) {
      end -= end % kTileRows == 0 && !may_see(batch, i, end - 1) ? kTileRows : 1;
    }
    if (begin < end) {
      reach[row] = {static_cast<int>(begin), static_cast<int>(end)};
    } else if (in.sink != nullptr) {
      reach[row] = {0, 0};
    } else {
      reach[row] = {-1, dead_rows_weigh(in.dead_rows) ? static_cast<int>(in.keys) : 0};
    }
  }
  // A key of the tile of key j.
  AUTOSP_DEVICE bool may_see(int64_t batch, int64_t i, int64_t j) const {
    const KeySummary& tile = summaries[batch * tiles_of(in.keys) + j / kTileRows];
    if (!tile.any || in.query_segment == nullptr) return tile.any;
    const int64_t segment = in.query_segment[batch * in.query_segment_stride + i];
    return tile.least_segment <= segment && segment <= tile.greatest_segment;
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

int64_t reach_bytes(int64_t batch, int64_t queries, int64_t keys) {
  static_assert(sizeof(KeySummary) % 8 == 0 && sizeof(Reach) % 8 == 0);
  return batch * (queries + tiles_of(queries)) * static_cast<int64_t>(sizeof(Reach)) +
         batch * tiles_of(keys) * static_cast<int64_t>(sizeof(KeySummary));
}

template <typename T>
Reaches find_reaches(const Queue& queue, const Inputs<T>& in, std::byte* memory) {
  auto* summaries = reinterpret_cast<KeySummary*>(memory);
  auto* rows = reinterpret_cast<Reach*>(summaries + in.batch * tiles_of(in.keys));
  Reach* tiles = rows + in.batch * in.queries;
  const Reaches reaches{rows, tiles, in.queries, tiles_of(in.queries)};
  launch(queue, in.batch * tiles_of(in.keys), Summarize<T>{summaries, in});
  launch(queue, in.batch * in.queries, RowReach<T>{rows, summaries, in});
  launch(queue, in.batch * reaches.num_tiles, TileReach{tiles, reaches});
  return reaches;
}

template Reaches find_reaches(const Queue&, const Inputs<float>&, std::byte*);
template Reaches find_reaches(const Queue&, const Inputs<Float16>&, std::byte*);
template Reaches find_reaches(const Queue&, const Inputs<BFloat16>&, std::byte*);

}  // namespace autosp::kernels

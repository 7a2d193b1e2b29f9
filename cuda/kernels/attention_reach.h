// Which keys the rows of attention see, found before attention itself: whole tiles that nobody sees
// are then passed over, whichever mask hides them.
#pragma once

#include "cuda/kernels/attention_inputs.h"
#include "cuda/kernels/tiles.h"

namespace autosp::kernels {

// Keys begin .. end - 1. Of a row that sees some, the first and the last one of these; between
// them, key masks and segments may hide more. Of a row that sees none (unless there is a sink),
// begin is -1, and end the number of keys where they have weights nevertheless, else 0.
struct Reach {
  int begin;
  int end;
  AUTOSP_DEVICE bool is_dead() const { return begin < 0; }
};

// Of every query, and of every kTileRows of them: what any of these sees.
struct Reaches {
  const Reach* rows;   // [batch, queries]
  const Reach* tiles;  // [batch, tiles of queries]
  int64_t queries;
  int64_t num_tiles;

  AUTOSP_DEVICE Reach row(int64_t batch, int64_t query) const {
    return rows[batch * queries + query];
  }
  // Of the tile that a query is in.
  AUTOSP_DEVICE Reach tile_of(int64_t batch, int64_t query) const {
    return tiles[batch * num_tiles + query / kTileRows];
  }
};

AUTOSP_DEVICE inline int64_t tiles_of(int64_t extent) {
  return (extent + kTileRows - 1) / kTileRows;
}

// Bytes that find_reaches() wants, a multiple of 8.
int64_t reach_bytes(int64_t batch, int64_t queries, int64_t keys);

// Queues finding them, into `memory`. T does not matter to it.
template <typename T>
Reaches find_reaches(const Queue& queue, const Inputs<T>& in, std::byte* memory);

// --- Metadata of tiles, in shared memory.

template <int kCount>
struct QueryTile {
  Reach reach[kCount];
  int64_t segment[kCount];

  template <typename T>
  AUTOSP_DEVICE void load(const Inputs<T>& in, const Reaches& reaches, int64_t batch, int64_t first,
                          int thread) {
    for (int i = thread; i < kCount; i += kTileThreads) {
      const bool is_there = first + i < in.queries;
      reach[i] = is_there ? reaches.row(batch, first + i) : Reach{0, 0};
      if (in.query_segment == nullptr || !is_there) continue;
      segment[i] = in.query_segment[batch * in.query_segment_stride + first + i];
    }
  }
};

template <int kCount>
struct KeyTile {
  bool seen[kCount];  // by the key mask
  int64_t segment[kCount];

  template <typename T>
  AUTOSP_DEVICE void load(const Inputs<T>& in, int64_t batch, int64_t first, int thread) {
    for (int j = thread; j < kCount; j += kTileThreads) {
      const bool is_there = first + j < in.keys;
      seen[j] =
          is_there && (in.key_mask == nullptr || in.key_mask[batch * in.key_stride + first + j]);
      if (in.key_segment == nullptr || !is_there) continue;
      segment[j] = in.key_segment[batch * in.key_segment_stride + first + j];
    }
  }
};

// Whether query i of its tile gives key j of its tile, which is key `key` of all, a weight.
template <typename T, int kQueries, int kKeys>
AUTOSP_DEVICE bool weighs(const Inputs<T>& in, const QueryTile<kQueries>& queries, int i,
                          const KeyTile<kKeys>& keys, int j, int64_t key) {
  const Reach reach = queries.reach[i];
  if (key < reach.begin || key >= reach.end) return false;
  if (reach.is_dead()) return true;
  return keys.seen[j] && (in.query_segment == nullptr || queries.segment[i] == keys.segment[j]);
}

// Whether a key may have a weight in a tile of queries that reaches so far, as intervals and key
// masks have it. What other keys hold may be anything, and is not looked at.
template <typename T>
AUTOSP_DEVICE bool may_matter(const Inputs<T>& in, const Reach& reach, int64_t batch, int64_t key) {
  if (key < reach.begin || key >= reach.end) return false;
  const bool has_dead_rows = dead_rows_weigh(in.dead_rows) && in.sink == nullptr;
  return has_dead_rows || in.key_mask == nullptr || in.key_mask[batch * in.key_stride + key];
}

// The first query of the tile that a block takes, of blocks for every tile of every head.
template <typename T>
AUTOSP_DEVICE typename Inputs<T>::Place tile_of_queries(const Inputs<T>& in, const Reaches& reaches,
                                                        int64_t block) {
  const int64_t head = block / reaches.num_tiles;
  return {head / in.query_heads, head % in.query_heads, block % reaches.num_tiles * kTileRows};
}

}  // namespace autosp::kernels

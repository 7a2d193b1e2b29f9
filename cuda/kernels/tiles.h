// Tiles of matrices in the shared memory of a block, and products of them whose sums its threads
// keep in registers.
//
// Sums are float. Products of 16-bit numbers go through tensor cores (mma.sync; layouts of its
// operands: PTX ISA, "Matrix Fragments for mma.m16n8k16"), those of float32 through fused
// multiply-adds. A thread computes the same entries of a product wherever it runs: on the emulated
// device it sums them one by one.
#pragma once

#include "cuda/kernels/launch.h"
#include "cuda/kernels/map.h"

namespace autosp::kernels {

inline constexpr int kTileThreads = 256;  // of a block that works on tiles
inline constexpr int kTileRows = 64;      // of a product
inline constexpr int kTileDepth = 16;     // a product sums over a multiple of so many

AUTOSP_DEVICE constexpr int padded_depth(int depth) {
  return (depth + kTileDepth - 1) / kTileDepth * kTileDepth;
}

// How many of at most `most` places from `first` on lie before `extent`.
AUTOSP_DEVICE inline int count_within(int64_t extent, int64_t first, int most) {
  return static_cast<int>(extent - first < most ? extent - first : most);
}

template <typename T>
inline constexpr int kTilePack = 16 / static_cast<int>(sizeof(T));  // elements of 16 bytes

// Rows are 16 bytes longer than they are wide, so that eight of them begin in different banks.
template <typename T, int kCount, int kWidth>
struct alignas(16) Tile {
  static constexpr int kRows = kCount;
  static constexpr int kStride = kWidth + kTilePack<T>;
  T at[kCount][kStride];
};

struct EveryRow {
  AUTOSP_DEVICE bool operator()(int /*row*/) const { return true; }
};

// The first `count` rows of a matrix that is `width` wide, where keeps(row); zeros elsewhere, up to
// the next multiple of kTileDepth. `packed`: all rows begin at multiples of 16 bytes.
template <typename T, int kCount, int kWidth, typename Keeps = EveryRow>
AUTOSP_DEVICE void load_tile(Tile<T, kCount, kWidth>& to, const T* from, int count, int width,
                             bool packed, int thread, Keeps keeps = {}) {
  const int padded = padded_depth(width);
  if (packed) {
    constexpr int kPacked = kTilePack<T>;
    const int packs = padded / kPacked;
    for (int i = thread; i < kCount * packs; i += kTileThreads) {
      const int row = i / packs;
      const int column = i % packs * kPacked;
      Pack<T, kPacked> pack;
      if (row < count && column < width && keeps(row)) {
        pack = *reinterpret_cast<const Pack<T, kPacked>*>(from + static_cast<int64_t>(row) * width +
                                                          column);
      } else {
        for (T& element : pack.element) element = T(0.0F);
      }
      *reinterpret_cast<Pack<T, kPacked>*>(&to.at[row][column]) = pack;
    }
    return;
  }
  for (int i = thread; i < kCount * padded; i += kTileThreads) {
    const int row = i / padded;
    const int column = i % padded;
    const bool is_there = row < count && column < width && keeps(row);
    to.at[row][column] = is_there ? from[static_cast<int64_t>(row) * width + column] : T(0.0F);
  }
}

// How the right factor of a product lies in its tile.
enum class Stored : uint8_t {
  kByColumn,  // a row of the tile is a column of the factor: right(k, column) = at[column][k]
  kByDepth    // right(k, column) = at[k][column]
};

// Which entries of products of kTileRows rows a thread sums. Rows are the same for products of any
// number of columns.
template <typename T>
struct TileThreads {
  static constexpr bool kTensorCores = kIsHalf<T>;
  static constexpr int kRows = kTensorCores ? 2 : 4;     // of a thread
  static constexpr int kOwners = kTensorCores ? 8 : 16;  // threads that share a row

  AUTOSP_DEVICE static int row(int thread, int r) {
    if constexpr (kTensorCores) return thread / 32 % 4 * 16 + thread % 32 / 4 + 8 * r;
    return thread / 16 * 4 + r;
  }
  // Of a row's threads, in 0 .. kOwners - 1.
  AUTOSP_DEVICE static int owner(int thread) {
    if constexpr (kTensorCores) return thread / 128 * 4 + thread % 4;
    return thread % 16;
  }
};

// What the threads of a warp do together, with what each of them holds afterwards (PTX ISA:
// ldmatrix; "Matrix Fragments for mma.m16n8k16").
//
// load_matrices: four matrices of 8 by 8 16-bit numbers, whose rows begin where eight threads each
// say. Thread 4 i + j gets numbers 2 j and 2 j + 1 of row i of each, or of column i (kTransposed).
//
// multiply_add: a product of 16 by 8, of 16 terms, is added. Thread 4 i + j holds entries 2 j and
// 2 j + 1 of its rows i (d0, d1) and i + 8 (d2, d3).
#if defined(__CUDACC__)

template <bool kTransposed>
__device__ inline void load_matrices(uint32_t (&to)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  }
}

template <typename T>
__device__ inline void multiply_add(float& d0, float& d1, float& d2, float& d3,
                                    const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

#else

// Of a test (test/unit/tiles_test.cpp).
template <bool kTransposed>
void load_matrices(uint32_t (&to)[4], const void* row);
template <typename T>
void multiply_add(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4], uint32_t b0,
                  uint32_t b1);

#endif

// A thread's entries of the product of a left factor of kTileRows rows with a right one of kColumns
// columns.
template <typename T, int kColumns, Stored kStored>
struct TileSum {
  using Threads = TileThreads<T>;
  static constexpr int kRows = Threads::kRows;
  static constexpr int kOwn = kTileRows * kColumns / kTileThreads / kRows;  // columns of a thread
  static_assert(kColumns % (Threads::kTensorCores || kStored == Stored::kByDepth ? 64 : 32) == 0);

  float at[kRows][kOwn];

  AUTOSP_DEVICE static int column(int thread, int c) {
    if constexpr (Threads::kTensorCores) {
      return thread / 128 * (kColumns / 2) + c / 2 * 8 + thread % 4 * 2 + c % 2;
    } else if constexpr (kStored == Stored::kByColumn) {
      return thread % 16 + 16 * c;
    } else {
      return c / 4 * 64 + thread % 16 * 4 + c % 4;
    }
  }

  AUTOSP_DEVICE void clear() {
    AUTOSP_UNROLL
    for (auto& row : at) {
      AUTOSP_UNROLL
      for (float& entry : row) entry = 0;
    }
  }

  // Adds left . right over `depth` terms; `left` is stored by rows.
  template <int kLeftWidth, int kRightCount, int kRightWidth>
  AUTOSP_DEVICE void add(const Tile<T, kTileRows, kLeftWidth>& left,
                         const Tile<T, kRightCount, kRightWidth>& right, int depth, int thread) {
#if defined(__CUDA_ARCH__)
    if constexpr (Threads::kTensorCores) {
      add_on_tensor_cores(left, right, depth, thread);
    } else {
      add_one_by_one(left, right, depth, thread);
    }
#else
    add_one_by_one(left, right, depth, thread);
#endif
  }

  // The two ways. A warp takes 16 rows and half of the columns.
  template <typename Left, typename Right>
  AUTOSP_DEVICE_ONLY void add_on_tensor_cores(const Left& left, const Right& right, int depth,
                                              int thread) {
    const int lane = thread % 32;
    const int row = thread / 32 % 4 * 16;
    const int begin = thread / 128 * (kColumns / 2);
    for (int k = 0; k < depth; k += kTileDepth) {
      uint32_t a[4];
      load_matrices<false>(a, &left.at[row + lane % 16][k + lane / 16 * 8]);
      AUTOSP_UNROLL
      for (int n = 0; n < kColumns / 2; n += 16) {
        // Of columns n to n + 7 and of the eight after them: the first eight terms, the others.
        uint32_t b[4];
        if constexpr (kStored == Stored::kByColumn) {
          load_matrices<false>(
              b, &right.at[begin + n + lane % 8 + lane / 16 * 8][k + lane / 8 % 2 * 8]);
        } else {
          load_matrices<true>(b, &right.at[k + lane % 16][begin + n + lane / 16 * 8]);
        }
        AUTOSP_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int c = n / 8 * 2 + half * 2;
          multiply_add<T>(at[0][c], at[0][c + 1], at[1][c], at[1][c + 1], a, b[2 * half],
                          b[2 * half + 1]);
        }
      }
    }
  }

  template <typename Left, typename Right>
  AUTOSP_DEVICE void add_one_by_one(const Left& left, const Right& right, int depth, int thread) {
    for (int k = 0; k < depth; k += 4) {
      float a[kRows][4];
      float b[4][kOwn];
      AUTOSP_UNROLL
      for (int r = 0; r < kRows; ++r) {
        read(a[r], &left.at[Threads::row(thread, r)][k]);
      }
      if constexpr (kStored == Stored::kByColumn) {
        AUTOSP_UNROLL
        for (int c = 0; c < kOwn; ++c) {
          float along[4];
          read(along, &right.at[column(thread, c)][k]);
          AUTOSP_UNROLL
          for (int n = 0; n < 4; ++n) b[n][c] = along[n];
        }
      } else {
        AUTOSP_UNROLL
        for (int n = 0; n < 4; ++n) read_columns(b[n], right.at[k + n], thread);
      }
      AUTOSP_UNROLL
      for (int n = 0; n < 4; ++n) {
        AUTOSP_UNROLL
        for (int r = 0; r < kRows; ++r) {
          AUTOSP_UNROLL
          for (int c = 0; c < kOwn; ++c) at[r][c] += a[r][n] * b[n][c];
        }
      }
    }
  }

 private:
  AUTOSP_DEVICE static void read(float (&to)[4], const T* from) {
    const auto pack = *reinterpret_cast<const Pack<T, 4>*>(from);
    AUTOSP_UNROLL
    for (int n = 0; n < 4; ++n) to[n] = pack.element[n];
  }
  AUTOSP_DEVICE static void read_columns(float (&to)[kOwn], const T* row, int thread) {
    if constexpr (Threads::kTensorCores) {
      AUTOSP_UNROLL
      for (int c = 0; c < kOwn; ++c) to[c] = row[column(thread, c)];
    } else {
      AUTOSP_UNROLL
      for (int c = 0; c < kOwn; c += 4) {
        const auto pack = *reinterpret_cast<const Pack<T, 4>*>(row + column(thread, c));
        AUTOSP_UNROLL
        for (int n = 0; n < 4; ++n) to[c + n] = pack.element[n];
      }
    }
  }
};

}  // namespace autosp::kernels

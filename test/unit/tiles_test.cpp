// Products of tiles by tensor cores, whose instructions are played here by a thread per thread of
// the block, as the PTX ISA describes them: the other way, which the emulated device takes, has to
// give the same.
#include "cuda/kernels/tiles.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <barrier>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

namespace autosp::kernels {

namespace {

constexpr int kWarp = 32;

struct Fragments {
  std::array<uint32_t, 4> a;
  std::array<uint32_t, 2> b;
};

struct Warp {
  std::barrier<> all{kWarp};
  std::array<const uint16_t*, kWarp> row;
  std::array<Fragments, kWarp> given;
};

thread_local Warp* warp = nullptr;
thread_local int lane = 0;

template <typename T>
float number(uint32_t pair, size_t which) {
  T value;
  value.bits = static_cast<uint16_t>(which == 0 ? pair : pair >> 16U);
  return static_cast<float>(value);
}

}  // namespace

template <bool kTransposed>
void load_matrices(uint32_t (&to)[4], const void* row) {
  EXPECT_EQ(reinterpret_cast<uintptr_t>(row) % 16, 0U);
  warp->row[static_cast<size_t>(lane)] = static_cast<const uint16_t*>(row);
  warp->all.arrive_and_wait();
  for (size_t matrix = 0; matrix < 4; ++matrix) {
    const uint16_t* const* rows = &warp->row[8 * matrix];
    const int i = lane / 4;
    const int j = lane % 4 * 2;
    const uint32_t first = kTransposed ? rows[j][i] : rows[i][j];
    const uint32_t second = kTransposed ? rows[j + 1][i] : rows[i][j + 1];
    to[matrix] = first | second << 16U;
  }
  warp->all.arrive_and_wait();
}

template <typename T>
void multiply_add(float& d0, float& d1, float& d2, float& d3, const uint32_t (&a)[4], uint32_t b0,
                  uint32_t b1) {
  warp->given[static_cast<size_t>(lane)] = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  warp->all.arrive_and_wait();
  // Of the left factor, registers 0 and 2 of thread 4 i + j hold row i, 1 and 3 row i + 8; 0 and 1
  // hold terms 2 j and 2 j + 1, 2 and 3 those that come eight later. Of the right factor, it holds
  // column i: the same terms.
  const auto left = [](size_t row, size_t k) {
    const size_t holder = row % 8 * 4 + k % 8 / 2;
    const size_t which = row / 8 + k / 8 * 2;
    return number<T>(warp->given[holder].a[which], k % 2);
  };
  const auto right = [](size_t k, size_t column) {
    const size_t holder = column * 4 + k % 8 / 2;
    return number<T>(warp->given[holder].b[k / 8], k % 2);
  };
  const std::array<float*, 4> sums = {&d0, &d1, &d2, &d3};
  const auto own = static_cast<size_t>(lane);
  for (size_t n = 0; n < 4; ++n) {
    for (size_t k = 0; k < 16; ++k) {
      *sums[n] += left(own / 4 + n / 2 * 8, k) * right(k, own % 4 * 2 + n % 2);
    }
  }
  warp->all.arrive_and_wait();
}

namespace {

// Small integers: sums are exact in every order.
template <typename SomeTile>
void fill(SomeTile& tile, unsigned seed) {
  std::mt19937 random(seed);
  for (auto& row : tile.at) {
    for (auto& element : row) {
      element = std::remove_reference_t<decltype(element)>(static_cast<float>(random() % 7) - 3);
    }
  }
}

template <typename T, int kColumns, Stored kStored, typename Right>
void expect_both_ways_alike(int depth) {
  using Sum = TileSum<T, kColumns, kStored>;
  Tile<T, kTileRows, 128> left;
  const auto right = std::make_unique<Right>();
  fill(left, 1);
  fill(*right, 2);
  std::array<Warp, kTileThreads / kWarp> warps;
  std::vector<std::thread> threads;
  std::array<std::array<bool, kColumns>, kTileRows> is_summed{};
  std::mutex mutex;
  for (int thread = 0; thread < kTileThreads; ++thread) {
    threads.emplace_back([&, thread] {
      warp = &warps[static_cast<size_t>(thread / kWarp)];
      lane = thread % kWarp;
      Sum got;
      Sum want;
      got.clear();
      want.clear();
      got.add_on_tensor_cores(left, *right, depth, thread);
      want.add_one_by_one(left, *right, depth, thread);
      const std::lock_guard lock(mutex);
      for (int r = 0; r < Sum::kRows; ++r) {
        for (int c = 0; c < Sum::kOwn; ++c) {
          const int row = Sum::Threads::row(thread, r);
          const int column = Sum::column(thread, c);
          EXPECT_EQ(got.at[r][c], want.at[r][c]) << "row " << row << ", column " << column;
          float sum = 0;
          for (int k = 0; k < depth; ++k) {
            const T other =
                kStored == Stored::kByColumn ? right->at[column][k] : right->at[k][column];
            sum += static_cast<float>(left.at[row][k]) * static_cast<float>(other);
          }
          EXPECT_EQ(got.at[r][c], sum);
          bool& seen = is_summed[static_cast<size_t>(row)][static_cast<size_t>(column)];
          EXPECT_FALSE(seen);
          seen = true;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& row : is_summed) EXPECT_TRUE(std::ranges::all_of(row, std::identity()));
}

template <typename T>
class TileProducts : public testing::Test {};
using Halves = testing::Types<Float16, BFloat16>;
TYPED_TEST_SUITE(TileProducts, Halves);

TYPED_TEST(TileProducts, AreTheSameOnTensorCores) {
  expect_both_ways_alike<TypeParam, 64, Stored::kByColumn, Tile<TypeParam, 64, 128>>(128);
  expect_both_ways_alike<TypeParam, 64, Stored::kByColumn, Tile<TypeParam, 64, 128>>(48);
  expect_both_ways_alike<TypeParam, 64, Stored::kByDepth, Tile<TypeParam, 64, 64>>(64);
  expect_both_ways_alike<TypeParam, 128, Stored::kByDepth, Tile<TypeParam, 64, 128>>(64);
  expect_both_ways_alike<TypeParam, 256, Stored::kByDepth, Tile<TypeParam, 64, 256>>(64);
}

}  // namespace
}  // namespace autosp::kernels

// Copies of boxes in full: every way to copy a row, at every alignment, and boxes large enough to
// be copied past the caches.
#include "executor/transport/boxes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

namespace autosp::executor {
namespace {

using Bytes = std::vector<std::byte>;

Bytes pattern(size_t size, unsigned seed) {
  Bytes bytes(size);
  uint32_t state = seed;
  for (std::byte& byte : bytes) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<std::byte>(state >> 24U);
  }
  return bytes;
}

std::vector<std::pair<int64_t, int64_t>> ranges(const Box& box, const ir::Shape& shape,
                                                int64_t gap) {
  std::vector<std::pair<int64_t, int64_t>> result;
  for (const ElementRange& range : ranges_of(box, shape, gap)) {
    result.emplace_back(range.begin, range.count);
  }
  return result;
}

TEST(RangesOf, AreWhatABoxHolds) {
  using Ranges = std::vector<std::pair<int64_t, int64_t>>;
  const ir::Shape shape = {3, 4, 5};
  EXPECT_EQ(ranges({{0, 0, 0}, {3, 4, 5}}, shape, 1), Ranges({{0, 60}}));
  EXPECT_EQ(ranges({{1, 0, 0}, {2, 4, 5}}, shape, 1), Ranges({{20, 40}}));
  EXPECT_EQ(ranges({{1, 1, 0}, {2, 2, 5}}, shape, 1), Ranges({{25, 10}, {45, 10}}));
  EXPECT_EQ(ranges({{1, 1, 0}, {2, 2, 5}}, shape, 11), Ranges({{25, 30}}));
  EXPECT_EQ(ranges({{1, 1, 0}, {2, 2, 5}}, shape, 10), Ranges({{25, 10}, {45, 10}}));
  EXPECT_EQ(ranges({{0, 1, 2}, {1, 2, 1}}, shape, 1), Ranges({{7, 1}, {12, 1}}));
  EXPECT_EQ(ranges({{2, 3, 4}, {1, 1, 1}}, shape, 1), Ranges({{59, 1}}));
  EXPECT_EQ(ranges({{9, 9, 9}, {1, 0, 1}}, shape, 1), Ranges());
  EXPECT_EQ(ranges({{}, {}}, {}, 1), Ranges({{0, 1}}));
}

TEST(RowCopies, CopyAllBytesAndNoOthers) {
  const Bytes from = pattern(size_t{1} << 12, 1);
  const Bytes before = pattern(size_t{1} << 12, 2);
  for (const RowCopy& way : row_copies()) {
    for (const size_t count : {0, 1, 31, 63, 64, 65, 256, 257, 1031, 3000}) {
      for (const size_t to : {0, 1, 4, 17, 63, 64}) {
        for (const size_t at : {0, 1, 8, 33}) {
          Bytes got = before;
          Bytes want = before;
          way.copy(got.data() + to, from.data() + at, count);
          std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(at), count,
                      want.begin() + static_cast<std::ptrdiff_t>(to));
          ASSERT_EQ(got, want) << way.name << ", " << count << " bytes from " << at << " to " << to;
        }
      }
    }
  }
}

// y's box becomes x's, element by element.
Bytes copied(size_t element, const Bytes& x, const ir::Shape& x_shape, const Box& from, Bytes y,
             const ir::Shape& y_shape, const Box& to) {
  std::vector<int64_t> index(x_shape.size(), 0);
  const auto offset = [&](const ir::Shape& shape, const Box& box) {
    int64_t at = 0;
    for (size_t k = 0; k < shape.size(); ++k) at = at * shape[k] + box.begin[k] + index[k];
    return at * static_cast<int64_t>(element);
  };
  for (int64_t left = from.num_elements(); left > 0; --left) {
    std::copy_n(x.begin() + offset(x_shape, from), element, y.begin() + offset(y_shape, to));
    for (size_t k = index.size(); k-- > 0;) {
      if (++index[k] < from.extent[k]) break;
      index[k] = 0;
    }
  }
  return y;
}

TEST(Boxes, AreCopiedWholeWhereTheyAreLarge) {
  for (const size_t element : {1, 2, 4, 8}) {
    const auto size = static_cast<int64_t>(element);
    const int64_t row = 1031 / size + 300 / size;  // odd lengths, no multiple of a vector
    const ir::Shape x_shape = {9, 130, row + 7};
    const ir::Shape y_shape = {5, 201, row + 3};
    const Box from{{2, 1, 5}, {5, 127, row}};
    const Box to{{0, 71, 3}, {5, 127, row}};
    ASSERT_GE(from.num_elements() * size, int64_t{800} << 10);
    const Bytes x = pattern(static_cast<size_t>(ir::num_elements(x_shape)) * element, 3);
    const Bytes y = pattern(static_cast<size_t>(ir::num_elements(y_shape)) * element, 4);
    Bytes got = y;
    copy_box(element, {x.data(), x_shape}, from, {got.data(), y_shape}, to);
    ASSERT_EQ(got, copied(element, x, x_shape, from, y, y_shape, to)) << element;

    const Box whole = whole_box(from.extent);
    Bytes packed(static_cast<size_t>(from.num_elements()) * element);
    pack_box(element, {x.data(), x_shape}, from, packed.data());
    ASSERT_EQ(packed, copied(element, x, x_shape, from, packed, from.extent, whole)) << element;
    got = y;
    unpack_box(element, packed.data(), {got.data(), y_shape}, to);
    ASSERT_EQ(got, copied(element, packed, from.extent, whole, y, y_shape, to)) << element;
  }
}

// Attributes of a foreign graph may hold any numbers.
TEST(Boxes, FitWithoutOverflow) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const ir::Shape shape = {4, 6};
  EXPECT_TRUE(fits({{0, 0}, {4, 6}}, shape));
  EXPECT_TRUE(fits({{3, 5}, {1, 1}}, shape));
  EXPECT_TRUE(fits({{4, 0}, {0, 6}}, shape));
  EXPECT_FALSE(fits({{3, 5}, {2, 1}}, shape));
  EXPECT_FALSE(fits({{kMost, 0}, {1, 1}}, shape));
  EXPECT_FALSE(fits({{1, 0}, {kMost, 1}}, shape));
  EXPECT_FALSE(fits({{kMost, kMost}, {kMost, kMost}}, shape));
  EXPECT_FALSE(fits({{-1, 0}, {1, 1}}, shape));
}

}  // namespace
}  // namespace autosp::executor

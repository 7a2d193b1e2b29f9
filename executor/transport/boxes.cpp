#include "executor/transport/boxes.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "reference/element_types.h"
#include "reference/strided_loop.h"

namespace autosp::executor {

using reference::row_major_strides;
using reference::StridedLoop;

Box whole_box(const ir::Shape& shape) { return {std::vector<int64_t>(shape.size(), 0), shape}; }

std::vector<Box> slabs(const ir::Shape& shape, size_t axis, const std::vector<int64_t>& sizes) {
  std::vector<Box> result;
  int64_t begin = 0;
  for (int64_t size : sizes) {
    Box& box = result.emplace_back(whole_box(shape));
    box.begin[axis] = begin;
    box.extent[axis] = size;
    begin += size;
  }
  return result;
}

bool fits(const Box& box, const ir::Shape& shape) {
  if (box.begin.size() != shape.size() || box.extent.size() != shape.size()) return false;
  const bool empty = std::ranges::find(box.extent, 0) != box.extent.end();
  for (size_t k = 0; k < shape.size(); ++k) {
    if (box.begin[k] < 0 || box.extent[k] < 0) return false;
    // No sum of the two: attributes of a foreign graph may hold any numbers.
    const bool inside = box.extent[k] <= shape[k] && box.begin[k] <= shape[k] - box.extent[k];
    if (!inside && !empty) return false;
  }
  return true;
}

namespace {

int64_t offset_of(const Box& box, const reference::Strides& strides) {
  int64_t offset = 0;
  for (size_t k = 0; k < strides.size(); ++k) offset += box.begin[k] * strides[k];
  return offset;
}

// From this size on a copy goes past the caches: it does not read what it overwrites into them
// first. For rows of 1 KiB of an operand of 1 to 64 MiB that is 1.3 to 2 times as fast.
constexpr int64_t kStreamedBytes = int64_t{256} << 10;
constexpr int64_t kStreamedRow = 256;

// Rows that lie apart begin where the processor does not expect them. So many bytes of them are
// asked for ahead of the one that is copied: 1.3 to 2 times as fast for rows of 1 to 2 KiB.
constexpr size_t kAhead = 4096;
constexpr size_t kCacheLine = 64;

void copy_row(std::byte* out, const std::byte* in, size_t bytes) { std::memcpy(out, in, bytes); }

#if defined(__x86_64__)
// Bytes before the first multiple of `alignment`, at most `bytes`.
size_t misaligned_head(const std::byte* out, size_t alignment, size_t bytes) {
  return std::min(bytes, -reinterpret_cast<uintptr_t>(out) % alignment);
}

__attribute__((target("avx512f"))) void stream_row_avx512(std::byte* out, const std::byte* in,
                                                          size_t bytes) {
  size_t k = misaligned_head(out, sizeof(__m512i), bytes);
  std::memcpy(out, in, k);
  for (; k + sizeof(__m512i) <= bytes; k += sizeof(__m512i)) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out + k), _mm512_loadu_si512(in + k));
  }
  std::memcpy(out + k, in + k, bytes - k);
}

__attribute__((target("avx"))) void stream_row_avx(std::byte* out, const std::byte* in,
                                                   size_t bytes) {
  size_t k = misaligned_head(out, sizeof(__m256i), bytes);
  std::memcpy(out, in, k);
  for (; k + sizeof(__m256i) <= bytes; k += sizeof(__m256i)) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(out + k),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + k)));
  }
  std::memcpy(out + k, in + k, bytes - k);
}

void end_of_stream() { _mm_sfence(); }

std::vector<RowCopy> find_row_copies() {
  std::vector<RowCopy> copies = {{"memcpy", copy_row}};
  if (__builtin_cpu_supports("avx")) copies.push_back({"avx", stream_row_avx});
  if (__builtin_cpu_supports("avx512f")) copies.push_back({"avx512", stream_row_avx512});
  return copies;
}
#else
void end_of_stream() {}
std::vector<RowCopy> find_row_copies() { return {{"memcpy", copy_row}}; }
#endif

// Rows of one size, copied past the caches in the order in which they are added.
class StreamedRows {
 public:
  explicit StreamedRows(size_t bytes)
      : copy_(row_copies().back().copy),
        bytes_(bytes),
        waiting_most_(std::clamp<size_t>(kAhead / bytes, 1, kMostWaiting)) {}

  void add(std::byte* out, const std::byte* in) {
    for (size_t k = 0; k < std::min(bytes_, kAhead); k += kCacheLine) __builtin_prefetch(in + k);
    if (added_ - copied_ == waiting_most_) copy_next();
    rows_[added_++ % kMostWaiting] = {out, in};
  }
  // Copies what still waits.
  void finish() {
    while (copied_ < added_) copy_next();
    end_of_stream();
  }

 private:
  static constexpr size_t kMostWaiting = kAhead / kStreamedRow;
  struct Row {
    std::byte* out;
    const std::byte* in;
  };

  void copy_next() {
    const Row& row = rows_[copied_++ % kMostWaiting];
    copy_(row.out, row.in, bytes_);
  }

  void (*copy_)(std::byte* out, const std::byte* in, size_t bytes);
  size_t bytes_;
  size_t waiting_most_;
  std::array<Row, kMostWaiting> rows_{};
  size_t added_ = 0;
  size_t copied_ = 0;
};

// Copies an index space between two strided places.
void copy_strided(size_t element_size, const ir::Shape& extents, const std::byte* from,
                  const reference::Strides& from_strides, std::byte* to,
                  const reference::Strides& to_strides) {
  const StridedLoop<2> loop(extents, {from_strides, to_strides});
  const auto [from_step, to_step] = loop.row_strides();
  const int64_t count = loop.row_extent();
  const auto size = static_cast<int64_t>(element_size);
  if (from_step == 1 && to_step == 1) {
    const auto bytes = static_cast<size_t>(count * size);
    const auto each_row = [&](const auto& copy) {
      loop.for_each_row([&](const auto& at) { copy(to + at[1] * size, from + at[0] * size); });
    };
    if (count * size < kStreamedRow || ir::num_elements(extents) * size < kStreamedBytes) {
      return each_row([&](std::byte* out, const std::byte* in) { copy_row(out, in, bytes); });
    }
    StreamedRows rows(bytes);
    each_row([&](std::byte* out, const std::byte* in) { rows.add(out, in); });
    return rows.finish();
  }
  loop.for_each_row([&](const auto& at) {
    const std::byte* in = from + at[0] * size;
    std::byte* out = to + at[1] * size;
    // The innermost axis of a box has extent 1, so another one is walked in steps.
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(out + i * to_step * size, in + i * from_step * size, element_size);
    }
  });
}

const std::byte* box_start(size_t element_size, const void* data, const Box& box,
                           const reference::Strides& strides) {
  return static_cast<const std::byte*>(data) +
         offset_of(box, strides) * static_cast<int64_t>(element_size);
}

}  // namespace

std::vector<ElementRange> ranges_of(const Box& box, const ir::Shape& shape, int64_t gap) {
  std::vector<ElementRange> ranges;
  if (box.num_elements() == 0) return ranges;
  const auto strides = row_major_strides(shape);
  const int64_t first = offset_of(box, strides);
  const StridedLoop<1> loop(box.extent, {strides});
  const int64_t step = loop.row_strides()[0];
  const int64_t pieces = step == 1 ? 1 : loop.row_extent();  // of a row
  const int64_t count = step == 1 ? loop.row_extent() : 1;   // of a piece
  loop.for_each_row([&](const auto& at) {
    for (int64_t k = 0; k < pieces; ++k) {
      const int64_t begin = first + at[0] + k * step;
      if (!ranges.empty() && begin - ranges.back().begin - ranges.back().count < gap) {
        ranges.back().count = begin + count - ranges.back().begin;
      } else {
        ranges.push_back({begin, count});
      }
    }
  });
  return ranges;
}

std::span<const RowCopy> row_copies() {
  static const std::vector<RowCopy> kCopies = find_row_copies();
  return kCopies;
}

void copy_box(size_t element_size, const ConstBuffer& x, const Box& from, const Buffer& y,
              const Box& to) {
  if (from.num_elements() == 0) return;
  if (from.extent != to.extent) {
    std::vector<std::byte> bytes(static_cast<size_t>(from.num_elements()) * element_size);
    pack_box(element_size, x, from, bytes.data());
    unpack_box(element_size, bytes.data(), y, to);
    return;
  }
  const auto x_strides = row_major_strides(x.shape);
  const auto y_strides = row_major_strides(y.shape);
  auto* out = static_cast<std::byte*>(y.data) +
              offset_of(to, y_strides) * static_cast<int64_t>(element_size);
  copy_strided(element_size, from.extent, box_start(element_size, x.data, from, x_strides),
               x_strides, out, y_strides);
}

void pack_box(size_t element_size, const ConstBuffer& x, const Box& from, std::byte* bytes) {
  if (from.num_elements() == 0) return;
  const auto strides = row_major_strides(x.shape);
  copy_strided(element_size, from.extent, box_start(element_size, x.data, from, strides), strides,
               bytes, row_major_strides(from.extent));
}

void unpack_box(size_t element_size, const std::byte* bytes, const Buffer& y, const Box& to) {
  if (to.num_elements() == 0) return;
  const auto strides = row_major_strides(y.shape);
  auto* out =
      static_cast<std::byte*>(y.data) + offset_of(to, strides) * static_cast<int64_t>(element_size);
  copy_strided(element_size, to.extent, bytes, row_major_strides(to.extent), out, strides);
}

void sum_in_order(ir::DataType dtype, std::span<const std::byte* const> terms, int64_t count,
                  std::byte* out) {
  constexpr int64_t kBlock = 1024;  // partial sums stay in the first-level cache
  reference::visit(reference::NumericTypes{}, dtype, [&]<typename T>(std::type_identity<T>) {
    using Sum = reference::Compute<T>;
    std::array<Sum, kBlock> sums;
    for (int64_t begin = 0; begin < count; begin += kBlock) {
      const int64_t size = std::min(kBlock, count - begin);
      for (size_t k = 0; k < terms.size(); ++k) {
        const T* term = reinterpret_cast<const T*>(terms[k]) + begin;
        if (k == 0) {
          for (int64_t i = 0; i < size; ++i) sums[static_cast<size_t>(i)] = term[i];
        } else {
          for (int64_t i = 0; i < size; ++i) {
            Sum& sum = sums[static_cast<size_t>(i)];
            sum = static_cast<Sum>(sum + static_cast<Sum>(term[i]));
          }
        }
      }
      T* to = reinterpret_cast<T*>(out) + begin;
      for (int64_t i = 0; i < size; ++i) to[i] = static_cast<T>(sums[static_cast<size_t>(i)]);
    }
  });
}

void sum_boxes(ir::DataType dtype, std::span<const std::byte* const> terms, const ir::Shape& shape,
               const Box& box, std::byte* out) {
  if (box.num_elements() == 0) return;
  const auto size = static_cast<int64_t>(ir::element_size(dtype));
  const auto strides = row_major_strides(shape);
  const int64_t begin = offset_of(box, strides);
  const StridedLoop<2> loop(box.extent, {strides, row_major_strides(box.extent)});
  const bool rows = loop.row_strides()[0] == 1 && loop.row_strides()[1] == 1;
  std::vector<const std::byte*> at_row(terms.size());
  const auto sum_at = [&](const std::array<int64_t, 2>& at, int64_t count) {
    for (size_t k = 0; k < terms.size(); ++k) at_row[k] = terms[k] + (begin + at[0]) * size;
    sum_in_order(dtype, at_row, count, out + at[1] * size);
  };
  if (rows) {
    loop.for_each_row([&](const auto& at) { sum_at(at, loop.row_extent()); });
  } else {
    loop.for_each([&](const auto& at) { sum_at(at, 1); });
  }
}

}  // namespace autosp::executor

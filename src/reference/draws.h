// What random operators draw: number i of a stream depends on seed, stream, step and i, on nothing
// else. So a rank, a tile or a second pass draws any part of a tensor on its own, and the same.
#pragma once

#include <cstdint>

#include "base/philox.h"
#include "ir/graph.h"

namespace autosp::reference {

struct DrawKey {
  bool operator==(const DrawKey&) const = default;

  uint64_t seed = 0;
  uint32_t stream = 0;  // which operator's numbers; the highest bit is that of second_stream
};

// Of a random operator of ONNX. One with a seed of its own draws what that seed gives, as every
// operator with this seed does; of the others, each has the stream that its name gives, under
// `seed`.
DrawKey draw_key(const ir::Node& node, uint64_t seed);

// For operators that take two numbers per element.
DrawKey second_stream(DrawKey key);

// Uniform numbers in [0, 1), multiples of 2^-24, so that float32 holds them exactly.
class UniformDraws {
 public:
  // Of the step, the lower 32 bits count.
  UniformDraws(DrawKey key, int64_t step);

  float at(uint64_t index) const {
    return uniform(block(index / kPerBlock)[static_cast<size_t>(index % kPerBlock)]);
  }

  // Numbers first, first + 1, ..., first + count - 1, in order: use(k, number of first + k).
  template <typename Use>
  void for_each(uint64_t first, int64_t count, Use&& use) const {
    for (int64_t k = 0; k < count;) {
      const uint64_t index = first + static_cast<uint64_t>(k);
      const philox::Counter drawn = block(index / kPerBlock);
      for (uint64_t word = index % kPerBlock; word < kPerBlock && k < count; ++word, ++k) {
        use(k, uniform(drawn[static_cast<size_t>(word)]));
      }
    }
  }

 private:
  static constexpr uint64_t kPerBlock = 4;

  static float uniform(uint32_t word) { return static_cast<float>(word >> 8U) * 0x1p-24F; }

  philox::Counter block(uint64_t number) const {
    return philox::words(
        {static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32U), stream_, step_},
        key_);
  }

  philox::Key key_;
  uint32_t stream_;
  uint32_t step_;
};

// The part of a tensor that one autosp::RandomUniform draws: elements [begin, begin + extent) along
// each axis of extents `whole`.
struct DrawnBox {
  ir::Shape whole;
  std::vector<int64_t> begin;
  ir::Shape extent;

  // Consecutive elements of the box that are consecutive in the whole: the box is so many of them
  // after another.
  int64_t run() const;
  // The number, in the whole, of the first element of run r.
  int64_t first(int64_t r) const;
};
// Of attributes `whole`, `begin` and `extent`, or of all of `shape` where these are absent.
DrawnBox drawn_box(const ir::Attributes& attributes);

}  // namespace autosp::reference

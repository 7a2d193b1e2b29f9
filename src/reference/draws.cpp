#include "reference/draws.h"

#include <bit>

namespace autosp::reference {

namespace {

constexpr uint32_t kSecond = uint32_t{1} << 31U;
constexpr uint64_t kUnrounded = uint64_t{1} << 63U;

// 31 bits of the 64-bit FNV-1a hash; 0 is the stream of operators with a seed of their own.
uint32_t stream_named(const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325U;
  for (const char byte : name) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001b3U;
  const auto folded = static_cast<uint32_t>(hash ^ (hash >> 32U)) & ~kSecond;
  return folded == 0 ? 1 : folded;
}

}  // namespace

DrawKey draw_key(const ir::Node& node, uint64_t seed) {
  if (!node.attributes.has("seed")) return {seed, stream_named(node.name)};
  // Dropout's seed is an integer, the others' a float. Equal numbers are equal seeds, and integers
  // that no float holds are seeds of their own, beyond the 32 bits of floats.
  if (node.op != "Dropout") {
    return {std::bit_cast<uint32_t>(node.attributes.get_float("seed", 0)), 0};
  }
  const int64_t own = node.attributes.get_int("seed", 0);
  const auto rounded = static_cast<float>(own);
  const bool is_held =
      static_cast<double>(rounded) < 0x1p63 && static_cast<int64_t>(rounded) == own;
  if (is_held) return {std::bit_cast<uint32_t>(rounded), 0};
  return {static_cast<uint64_t>(own) ^ kUnrounded, 0};
}

DrawKey second_stream(DrawKey key) { return {key.seed, key.stream ^ kSecond}; }

UniformDraws::UniformDraws(DrawKey key, int64_t step)
    : key_{static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32U)},
      stream_(key.stream),
      step_(static_cast<uint32_t>(static_cast<uint64_t>(step))) {}

int64_t DrawnBox::run() const {
  int64_t elements = 1;
  for (size_t k = whole.size(); k-- > 0;) {
    elements *= extent[k];
    if (extent[k] != whole[k]) break;
  }
  return elements;
}

int64_t DrawnBox::first(int64_t r) const {
  int64_t element = r * run();  // of the box
  int64_t number = 0;
  int64_t stride = 1;
  for (size_t k = whole.size(); k-- > 0;) {
    number += (begin[k] + element % extent[k]) * stride;
    element /= extent[k];
    stride *= whole[k];
  }
  return number;
}

DrawnBox drawn_box(const ir::Attributes& attributes) {
  if (attributes.has("whole")) {
    return {attributes.get_ints("whole"), attributes.get_ints("begin"),
            attributes.get_ints("extent")};
  }
  const std::vector<int64_t> shape = attributes.get_ints("shape");
  return {shape, std::vector<int64_t>(shape.size(), 0), shape};
}

}  // namespace autosp::reference

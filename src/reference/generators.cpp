// Operators whose values come from attributes, shapes or a random stream.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numbers>

#include "reference/call.h"

namespace autosp::reference {

namespace {

void constant(const Call& call) {
  const Result& y = call.results[0];
  const ir::Attributes& attributes = call.node.attributes;
  if (const ir::Tensor* value = attributes.get_tensor("value")) {
    std::memcpy(y.data, value->bytes().data(), value->bytes().size());
  } else if (attributes.has("value_int")) {
    *data<int64_t>(y) = attributes.get_int("value_int", 0);
  } else if (attributes.has("value_float")) {
    *data<float>(y) = attributes.get_float("value_float", 0);
  } else if (attributes.has("value_ints")) {
    std::ranges::copy(attributes.get_ints("value_ints"), data<int64_t>(y));
  } else {
    throw Error("Constant without a numeric value");
  }
}

void constant_of_shape(const Call& call) {
  const Result& y = call.results[0];
  const ir::Tensor* value = call.node.attributes.get_tensor("value");  // absent: float zero
  visit_bits(y.dtype, [&]<typename T>(std::type_identity<T>) {
    T bits = 0;
    if (value != nullptr) std::memcpy(&bits, value->bytes().data(), sizeof(T));
    std::fill_n(data<T>(y), size_of(y), bits);
  });
}

void shape(const Call& call) {
  const ir::Shape& extents = *call.operands[0].shape;
  const auto rank = static_cast<int64_t>(extents.size());
  int64_t start = call.node.attributes.get_int("start", 0);
  if (start < 0) start += rank;
  start = std::clamp<int64_t>(start, 0, rank);
  const int64_t count = size_of(call.results[0]);
  std::copy_n(extents.begin() + start, count, data<int64_t>(call.results[0]));
}

void size(const Call& call) { *data<int64_t>(call.results[0]) = size_of(call.operands[0]); }

void range(const Call& call) {
  const Result& y = call.results[0];
  const int64_t count = size_of(y);
  visit(NumericTypes{}, y.dtype, [&]<typename T>(std::type_identity<T>) {
    const Compute<T> start = *data<T>(call.operands[0]);
    const Compute<T> delta = *data<T>(call.operands[2]);
    for (int64_t i = 0; i < count; ++i) {
      data<T>(y)[i] = static_cast<T>(start + static_cast<Compute<T>>(i) * delta);
    }
  });
}

void eye_like(const Call& call) {
  const Result& y = call.results[0];
  const int64_t rows = (*y.shape)[0];
  const int64_t columns = (*y.shape)[1];
  const int64_t diagonal = call.node.attributes.get_int("k", 0);
  visit(AllTypes{}, y.dtype, [&]<typename T>(std::type_identity<T>) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        data<T>(y)[i * columns + j] = convert<T>(static_cast<int32_t>(j - i == diagonal));
      }
    }
  });
}

// A counter-based stream: draw i depends on the seed and i alone, so a run repeats itself.
class RandomStream {
 public:
  // Seeded by the attribute, or else by the node's name.
  explicit RandomStream(const ir::Node& node) {
    if (!node.attributes.has("seed")) {
      key_ = 0xcbf29ce484222325U;  // FNV-1a
      for (char c : node.name) key_ = (key_ ^ static_cast<uint8_t>(c)) * 0x100000001b3U;
    } else if (node.op == "Dropout") {  // the one operator whose seed is an integer
      key_ = std::bit_cast<uint32_t>(static_cast<float>(node.attributes.get_int("seed", 0)));
    } else {
      key_ = std::bit_cast<uint32_t>(node.attributes.get_float("seed", 0));
    }
    key_ = mix(key_);
  }
  // In [0, 1).
  double uniform(int64_t i) const {
    return static_cast<double>(mix(key_ + static_cast<uint64_t>(i)) >> 11U) * 0x1p-53;
  }
  // Of mean 0 and variance 1 (Box-Muller).
  double normal(int64_t i) const {
    const double radius = std::sqrt(-2 * std::log(1 - uniform(2 * i)));
    return radius * std::cos(2 * std::numbers::pi * uniform(2 * i + 1));
  }

 private:
  static uint64_t mix(uint64_t x) {  // splitmix64
    x += 0x9e3779b97f4a7c15U;
    x = (x ^ (x >> 30U)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27U)) * 0x94d049bb133111ebU;
    return x ^ (x >> 31U);
  }
  uint64_t key_;
};

template <typename F>
void fill(const Result& y, F&& draw) {
  visit(FloatTypes{}, y.dtype, [&]<typename T>(std::type_identity<T>) {
    const int64_t count = size_of(y);
    for (int64_t i = 0; i < count; ++i) data<T>(y)[i] = convert<T>(draw(i));
  });
}

void random_uniform(const Call& call) {
  const RandomStream stream(call.node);
  const double low = call.node.attributes.get_float("low", 0);
  const double high = call.node.attributes.get_float("high", 1);
  fill(call.results[0], [&](int64_t i) { return low + (high - low) * stream.uniform(i); });
}

void random_normal(const Call& call) {
  const RandomStream stream(call.node);
  const double mean = call.node.attributes.get_float("mean", 0);
  const double scale = call.node.attributes.get_float("scale", 1);
  fill(call.results[0], [&](int64_t i) { return mean + scale * stream.normal(i); });
}

// Draws 1 with the probability that the operand gives per element.
void bernoulli(const Call& call) {
  const RandomStream stream(call.node);
  const Operand& x = call.operands[0];
  visit(FloatTypes{}, x.dtype, [&]<typename From>(std::type_identity<From>) {
    visit(AllTypes{}, call.results[0].dtype, [&]<typename To>(std::type_identity<To>) {
      const int64_t count = size_of(x);
      for (int64_t i = 0; i < count; ++i) {
        const bool drawn = stream.uniform(i) < static_cast<Compute<From>>(data<From>(x)[i]);
        data<To>(call.results[0])[i] = convert<To>(static_cast<int32_t>(drawn));
      }
    });
  });
}

// Operands: data, ratio?, training_mode?. Results: data scaled by mask / (1 - ratio), mask.
void dropout(const Call& call) {
  const Operand& x = call.operands[0];
  const int64_t count = size_of(x);
  const bool training = has_operand(call, 2) && *data<bool>(call.operands[2]);
  double ratio = 0.5;
  if (has_operand(call, 1)) {
    visit(FloatTypes{}, call.operands[1].dtype, [&]<typename T>(std::type_identity<T>) {
      ratio = static_cast<Compute<T>>(*data<T>(call.operands[1]));
    });
  }
  if (!training) ratio = 0;
  const RandomStream stream(call.node);
  visit(FloatTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    const double scale = 1 / (1 - ratio);
    const auto threshold = static_cast<float>(ratio);
    for (int64_t i = 0; i < count; ++i) {
      // The draw is a float32, so that comparing what RandomUniform drew gives the same mask.
      const bool kept = ratio == 0 || static_cast<float>(stream.uniform(i)) >= threshold;
      if (has_result(call, 1)) data<bool>(call.results[1])[i] = kept;
      const double value = static_cast<Compute<T>>(data<T>(x)[i]);
      data<T>(call.results[0])[i] = convert<T>(kept ? value * scale : 0.0);
    }
  });
}

constexpr KernelRow kRows[] = {
    {"Constant", constant},
    {"ConstantOfShape", constant_of_shape},
    {"Shape", shape},
    {"Size", size},
    {"Range", range},
    {"EyeLike", eye_like},
    {"RandomUniform", random_uniform},
    {"RandomUniformLike", random_uniform},
    {"RandomNormal", random_normal},
    {"RandomNormalLike", random_normal},
    {"Bernoulli", bernoulli},
    {"Dropout", dropout},
};

}  // namespace

std::span<const KernelRow> generator_kernels() { return kRows; }

}  // namespace autosp::reference

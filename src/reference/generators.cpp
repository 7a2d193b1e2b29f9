// Operators whose values come from attributes, shapes or a random stream.
//
// ONNX's random operators are drawn here as of step 0 and seed 0. Passes turn them into draws of
// autosp::RandomUniform, which gives the same numbers there (transforms/canonicalize).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "reference/call.h"
#include "reference/draws.h"

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

template <typename F>
void fill(const Result& y, F&& draw) {
  visit(FloatTypes{}, y.dtype, [&]<typename T>(std::type_identity<T>) {
    const int64_t count = size_of(y);
    for (int64_t i = 0; i < count; ++i) data<T>(y)[i] = convert<T>(draw(i));
  });
}

UniformDraws draws_of(const Call& call) { return {draw_key(call.node, 0), 0}; }

// Element i of [low, high).
void random_uniform(const Call& call) {
  const UniformDraws draws = draws_of(call);
  const double low = call.node.attributes.get_float("low", 0);
  const double high = call.node.attributes.get_float("high", 1);
  fill(call.results[0], [&](int64_t i) {
    return low + (high - low) * static_cast<double>(draws.at(static_cast<uint64_t>(i)));
  });
}

// Box and Muller: two uniform numbers give a normal one.
void random_normal(const Call& call) {
  const UniformDraws radii = draws_of(call);
  const UniformDraws angles(second_stream(draw_key(call.node, 0)), 0);
  const double mean = call.node.attributes.get_float("mean", 0);
  const double scale = call.node.attributes.get_float("scale", 1);
  fill(call.results[0], [&](int64_t i) {
    const auto index = static_cast<uint64_t>(i);
    const double radius = std::sqrt(-2 * std::log(1 - static_cast<double>(radii.at(index))));
    const double angle = 2 * std::numbers::pi * static_cast<double>(angles.at(index));
    return mean + scale * radius * std::cos(angle);
  });
}

// Draws 1 with the probability that the operand gives per element.
void bernoulli(const Call& call) {
  const UniformDraws draws = draws_of(call);
  const Operand& x = call.operands[0];
  visit(FloatTypes{}, x.dtype, [&]<typename From>(std::type_identity<From>) {
    visit(AllTypes{}, call.results[0].dtype, [&]<typename To>(std::type_identity<To>) {
      const int64_t count = size_of(x);
      for (int64_t i = 0; i < count; ++i) {
        const bool drawn =
            draws.at(static_cast<uint64_t>(i)) < static_cast<Compute<From>>(data<From>(x)[i]);
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
  const UniformDraws draws = draws_of(call);
  visit(FloatTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    const double scale = 1 / (1 - ratio);
    const auto threshold = static_cast<float>(ratio);
    for (int64_t i = 0; i < count; ++i) {
      const bool kept = ratio == 0 || draws.at(static_cast<uint64_t>(i)) >= threshold;
      if (has_result(call, 1)) data<bool>(call.results[1])[i] = kept;
      const double value = static_cast<Compute<T>>(data<T>(x)[i]);
      data<T>(call.results[0])[i] = convert<T>(kept ? value * scale : 0.0);
    }
  });
}

// autosp::RandomUniform (docs/random.md). Operand: step?. The box [begin, begin + extent) of a
// tensor of extents `whole`, whose elements are numbered in row-major order.
void own_random_uniform(const Call& call) {
  const ir::Attributes& attributes = call.node.attributes;
  const UniformDraws draws({static_cast<uint64_t>(attributes.get_int("seed", 0)),
                            static_cast<uint32_t>(attributes.get_int("stream", 0))},
                           has_operand(call, 0) ? *data<int64_t>(call.operands[0]) : 0);
  const DrawnBox box = drawn_box(attributes);
  const int64_t run = box.run();
  const int64_t runs = run == 0 ? 0 : size_of(call.results[0]) / run;
  visit(TypeList<float, double>{}, call.results[0].dtype, [&]<typename T>(std::type_identity<T>) {
    T* y = data<T>(call.results[0]);
    for (int64_t r = 0; r < runs; ++r, y += run) {
      draws.for_each(static_cast<uint64_t>(box.first(r)), run,
                     [&](int64_t k, float drawn) { y[k] = static_cast<T>(drawn); });
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

std::span<const KernelRow> draw_kernels() {
  static constexpr KernelRow kOwn[] = {{"RandomUniform", own_random_uniform}};
  return kOwn;
}

}  // namespace autosp::reference

// The steps of a chain on rows of floats, once per instruction set.
#pragma once

#include <cstdint>

#include "executor/kernels/chain/chain.h"

namespace autosp::executor::chain {

// An operand's elements: `step` is 1, or 0 where one number stands for all.
template <typename T>
struct Elements {
  const T* data;
  int64_t step;
};

struct Loops {
  void (*unary)(Op, const float* x, float* y, int64_t count);
  void (*binary)(Op, Elements<float> a, Elements<float> b, float* y, int64_t count);
  void (*where)(Elements<bool> condition, Elements<float> a, Elements<float> b, float* y,
                int64_t count);
  float (*sum)(const float* x, int64_t count);
  float (*max)(const float* x, int64_t count);
  void (*softmax)(const float* x, float* y, int64_t count, bool log);
};

// Null where the processor (or this build) lacks the instructions.
const Loops* avx512_loops();
const Loops* avx2_loops();
const Loops* portable_loops();

const Loops& best_loops();

}  // namespace autosp::executor::chain

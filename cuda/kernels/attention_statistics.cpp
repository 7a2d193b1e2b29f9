#include "cuda/kernels/attention_statistics.h"

namespace autosp::kernels {

namespace {

struct Join {
  float* logarithms;
  const float* maxima;
  const float* sums;
  AUTOSP_DEVICE void operator()(int64_t i) const { logarithms[i] = maxima[i] + log(sums[i]); }
};

struct SetToOne {
  float* sums;
  AUTOSP_DEVICE void operator()(int64_t i) const { sums[i] = 1; }
};

}  // namespace

void join_statistics(const Queue& queue, int64_t rows, float* logarithms, const float* maxima,
                     const float* sums) {
  launch(queue, rows, Join{logarithms, maxima, sums});
}

void set_sums_to_one(const Queue& queue, int64_t rows, float* sums) {
  launch(queue, rows, SetToOne{sums});
}

}  // namespace autosp::kernels

// The maximum and the sum of attention's rows as the logarithm that cuDNN keeps of them.
#pragma once

#include "cuda/kernels/launch.h"

namespace autosp::kernels {

// logarithms[i] = maxima[i] + log(sums[i]).
void join_statistics(const Queue& queue, int64_t rows, float* logarithms, const float* maxima,
                     const float* sums);

// Such logarithms are maxima to sums of one: sums[i] = 1.
void set_sums_to_one(const Queue& queue, int64_t rows, float* sums);

}  // namespace autosp::kernels

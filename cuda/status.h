// What calls of CUDA's runtime return, as errors.
#pragma once

#include <cuda_runtime_api.h>

#include "base/error.h"

namespace autosp::cuda {

[[noreturn]] inline void fail(cudaError_t status, const char* what) {
  cudaGetLastError();  // else the next kernel that is started is told of it
  throw Error("CUDA: {}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status))
      .note(
          "kernels run after they were asked for: the fault may lie before the node that is named")
      .help("run with --device cpu; CUDA_LAUNCH_BLOCKING=1 names the node at which it happens");
}

// `what` is done by the call that returned `status`.
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail(status, what);
}

}  // namespace autosp::cuda

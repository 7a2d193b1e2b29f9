// Compiled for AVX2 with FMA (see CMakeLists.txt); run only where the processor has them.
#if defined(__AVX2__) && defined(__FMA__)
#define AUTOSP_SIMD_NAME "AVX2"
#include "executor/kernels/attention/backward_block.h"
#else
#include "executor/kernels/attention/blocks.h"
#endif

namespace autosp::executor::attention {

const Functions* avx2_functions() {
#if defined(AUTOSP_SIMD_NAME)
  const bool has_it = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has_it ? &kFunctions : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace autosp::executor::attention

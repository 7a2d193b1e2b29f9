// Compiled for AVX-512 (see CMakeLists.txt); run only where the processor has it.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define AUTOSP_SIMD_NAME "AVX-512"
#include "executor/kernels/attention/backward_block.h"
#else
#include "executor/kernels/attention/blocks.h"
#endif

namespace autosp::executor::attention {

const Functions* avx512_functions() {
#if defined(AUTOSP_SIMD_NAME)
  const bool has_it = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  return has_it ? &kFunctions : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace autosp::executor::attention

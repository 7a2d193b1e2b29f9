// Compiled for AVX-512 (see CMakeLists.txt); run only where the processor has it.
#if defined(__AVX512F__)
#include "executor/kernels/chain/loops.inc"
#else
#include "executor/kernels/chain/loops.h"
#endif

namespace autosp::executor::chain {

const Loops* avx512_loops() {
#if defined(__AVX512F__)
  const bool has_it = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  return has_it ? &kLoops : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace autosp::executor::chain

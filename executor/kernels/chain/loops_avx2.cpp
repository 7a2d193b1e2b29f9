// Compiled for AVX2 (see CMakeLists.txt); run only where the processor has it.
#if defined(__AVX2__)
#include "executor/kernels/chain/loops.inc"
#else
#include "executor/kernels/chain/loops.h"
#endif

namespace autosp::executor::chain {

const Loops* avx2_loops() {
#if defined(__AVX2__)
  const bool has_it = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has_it ? &kLoops : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace autosp::executor::chain

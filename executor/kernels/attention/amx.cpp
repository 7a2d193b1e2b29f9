// bfloat16 through AMX (see CMakeLists.txt); run only where the processor has it and the kernel
// lets this process use it. The backward pass is AVX-512's, which computes in float32.
#if defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)
#define AUTOSP_SIMD_NAME "AMX"
#include <sys/syscall.h>
#include <unistd.h>

#include "executor/kernels/attention/amx_forward.h"
#include "executor/kernels/attention/backward_block.h"
#else
#include "executor/kernels/attention/blocks.h"
#endif

namespace autosp::executor::attention {

#if defined(AUTOSP_SIMD_NAME)
namespace {

// The tiles' registers are saved by the kernel for processes that have asked for it.
bool may_use_tiles() {
  constexpr int64_t kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int64_t kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

constexpr Functions kAmxFunctions = [] {
  Functions functions = kFunctions;
  functions.forward_scratch = amx_forward_scratch;
  functions.forward = amx_forward;
  functions.packed_block = packed_block;
  functions.pack = pack;
  return functions;
}();

}  // namespace
#endif

const Functions* amx_functions() {
#if defined(AUTOSP_SIMD_NAME)
  static const bool kHasIt = avx512_functions() != nullptr && __builtin_cpu_supports("amx-tile") &&
                             __builtin_cpu_supports("amx-bf16") && may_use_tiles();
  return kHasIt ? &kAmxFunctions : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace autosp::executor::attention

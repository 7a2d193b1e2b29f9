// bfloat16 through AMX (see CMakeLists.txt); run only where the processor has it and the kernel
// lets this process use it. The backward pass is AVX-512's, which computes in float32.
#if defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)
#define AUTOSP_SIMD_NAME "AMX"
#include <cpuid.h>
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

// Of leaf 7 of the processor's description; not every compiler has names for them.
bool has_tiles() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  constexpr unsigned kBfloat16 = 1U << 22U;
  constexpr unsigned kTile = 1U << 24U;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBfloat16) != 0 && (d & kTile) != 0;
}

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
  static const bool kHasIt = avx512_functions() != nullptr && has_tiles() && may_use_tiles();
  return kHasIt ? &kAmxFunctions : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace autosp::executor::attention

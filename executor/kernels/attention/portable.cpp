// For every processor.
#define AUTOSP_SIMD_NAME "portable"
#include "executor/kernels/attention/backward_block.h"

namespace autosp::executor::attention {

const Functions* portable_functions() { return &kFunctions; }

const Functions& best_functions(ir::DataType type) {
  if (type == ir::DataType::kBFloat16 && amx_functions() != nullptr) return *amx_functions();
  for (const Functions* functions : {avx512_functions(), avx2_functions()}) {
    if (functions != nullptr) return *functions;
  }
  return *portable_functions();
}

}  // namespace autosp::executor::attention

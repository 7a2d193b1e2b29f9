// In place of cudnn_attention.cpp where cuDNN's headers were not found.
#include "cuda/cudnn_attention.h"

namespace autosp::cuda {

std::unique_ptr<CudnnAttention> plan_attention(const AttentionShape& /*shape*/,
                                               std::string& reason) {
  reason = "built without cuDNN";
  return nullptr;
}

std::string check_attention(const AttentionShape& /*shape*/, int /*architecture*/) {
  return "built without cuDNN";
}

}  // namespace autosp::cuda

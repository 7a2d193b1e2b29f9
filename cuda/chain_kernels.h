// Fused chains (cuda/chains), compiled by NVRTC for the GPUs that are there.
#pragma once

#include "cuda/chains/kernel.h"

namespace autosp::cuda {

// For GPUs of one architecture, "sm_90".
class ChainCompiler final : public chains::Compiler {
 public:
  explicit ChainCompiler(std::string architecture) : architecture_(std::move(architecture)) {}

 protected:
  std::shared_ptr<const chains::Kernel> compile(const std::string& text) override;

 private:
  std::string architecture_;
};

}  // namespace autosp::cuda

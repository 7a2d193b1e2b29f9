// Fused chains on the emulated device: their source (cuda/chains), compiled for the host.
#pragma once

#include "cuda/chains/kernel.h"

namespace autosp::test {

class EmulatedChains final : public chains::Compiler {
 public:
  // `works`: false for a machine without a compiler.
  explicit EmulatedChains(bool works) : works_(works) {}

 protected:
  std::shared_ptr<const chains::Kernel> compile(const std::string& text) override;

 private:
  bool works_;
};

}  // namespace autosp::test

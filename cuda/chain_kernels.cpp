#include "cuda/chain_kernels.h"

#include "cuda/chains/device_text.h"
#include "cuda/device.h"
#include "cuda/nvrtc.h"
#include "cuda/status.h"

namespace autosp::cuda {

namespace {

class ChainKernel final : public chains::Kernel {
 public:
  explicit ChainKernel(std::vector<char> code) : code_(std::move(code)) {}
  ~ChainKernel() override {
    if (library_ != nullptr) cudaLibraryUnload(library_);
  }
  ChainKernel(const ChainKernel&) = delete;
  ChainKernel& operator=(const ChainKernel&) = delete;

  void start(const kernels::Queue& queue, int64_t blocks, int threads,
             chains::Arguments arguments) const override {
    std::call_once(loaded_, [this] { load(); });
    void* parameter = arguments.data();
    const dim3 grid(static_cast<unsigned>(blocks));
    const dim3 block(static_cast<unsigned>(threads));
    check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel_), grid, block, &parameter, 0,
                           device_of(queue.device).stream(queue.stream)),
          "starting a fused kernel");
  }

 private:
  // When it is first started, in a step that is not captured, as CUDA loads the other kernels: by
  // then a device has been chosen.
  void load() const {
    check(cudaLibraryLoadData(&library_, code_.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
          "loading a fused kernel");
    check(cudaLibraryGetKernel(&kernel_, library_, "chain"), "finding a fused kernel");
  }

  std::vector<char> code_;
  mutable std::once_flag loaded_;
  mutable cudaLibrary_t library_ = nullptr;
  mutable cudaKernel_t kernel_ = nullptr;
};

}  // namespace

std::shared_ptr<const chains::Kernel> ChainCompiler::compile(const std::string& text) {
  if (architecture_.empty()) throw Error("the GPUs are of several architectures");
  return std::make_shared<ChainKernel>(cuda::compile(chains::device_text(text), architecture_));
}

}  // namespace autosp::cuda

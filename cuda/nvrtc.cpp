#include "cuda/nvrtc.h"

#include <nvrtc.h>

#include <array>

#include "base/error.h"
#include "cuda/library.h"

namespace autosp::cuda {

namespace {

struct Nvrtc {
// NOLINTBEGIN(bugprone-macro-parentheses): it declares a member
#define AUTOSP_NVRTC(name) \
  decltype(::nvrtc##name)* name = nvrtc().function<decltype(::nvrtc##name)>("nvrtc" #name)
  AUTOSP_NVRTC(CreateProgram);
  AUTOSP_NVRTC(DestroyProgram);
  AUTOSP_NVRTC(CompileProgram);
  AUTOSP_NVRTC(GetErrorString);
  AUTOSP_NVRTC(GetProgramLogSize);
  AUTOSP_NVRTC(GetProgramLog);
  AUTOSP_NVRTC(GetCUBINSize);
  AUTOSP_NVRTC(GetCUBIN);
  AUTOSP_NVRTC(GetPTXSize);
  AUTOSP_NVRTC(GetPTX);
#undef AUTOSP_NVRTC
  // NOLINTEND(bugprone-macro-parentheses)
};

const Nvrtc& api() {
  static const Nvrtc kApi;
  return kApi;
}

class Program {
 public:
  explicit Program(const std::string& text) {
    check(api().CreateProgram(&program_, text.c_str(), "chain.cu", 0, nullptr, nullptr));
  }
  ~Program() { api().DestroyProgram(&program_); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void compile(const std::string& architecture) {
    const std::string target = "--gpu-architecture=" + architecture;
    const std::array<const char*, 3> options = {target.c_str(), "--std=c++17", "--fmad=false"};
    check(api().CompileProgram(program_, static_cast<int>(options.size()), options.data()));
  }
  std::vector<char> machine_code() const { return read(api().GetCUBINSize, api().GetCUBIN); }
  std::vector<char> ptx() const { return read(api().GetPTXSize, api().GetPTX); }

 private:
  void check(nvrtcResult status) const {
    if (status == NVRTC_SUCCESS) return;
    std::string log;
    if (program_ != nullptr) {
      const std::vector<char> text = read(api().GetProgramLogSize, api().GetProgramLog);
      log.assign(text.begin(), text.end());
    }
    throw Error("NVRTC: {}: {}", api().GetErrorString(status), log.substr(0, log.find('\n')))
        .note("it compiles kernels that are made for a model")
        .help("report this; without --fuse nothing is compiled");
  }

  template <typename Size, typename Get>
  std::vector<char> read(Size size, Get get) const {
    size_t bytes = 0;
    if (size(program_, &bytes) != NVRTC_SUCCESS) return {};
    std::vector<char> content(bytes);
    if (get(program_, content.data()) != NVRTC_SUCCESS) return {};
    return content;
  }

  nvrtcProgram program_ = nullptr;
};

}  // namespace

std::vector<char> compile(const std::string& text, const std::string& architecture) {
  Program program(text);
  program.compile(architecture);
  return architecture.starts_with("sm_") ? program.machine_code() : program.ptx();
}

}  // namespace autosp::cuda

// The emulated device in place of CUDA's: AUTOSP_CUDA_MODULE=.../libautosp_emulated.so, for tests
// of what runs with --device cuda. AUTOSP_EMULATED_LACKS names what it is without: "compiler" (of
// fused chains), "capture" (of steps).
#include <cstdlib>
#include <string_view>

#include "executor/device_module.h"
#include "support/emulated_device.h"

namespace {

autosp::executor::DeviceSurvey survey() {
  return {.toolkit = "no toolkit",
          .driver = "none",
          .architectures = {"emulated"},
          .libraries = {},
          .devices = {{"an emulated device", "emulated", int64_t{64} << 30, 1}},
          .reason = ""};
}

bool has(std::string_view what) {
  const char* lacks = std::getenv("AUTOSP_EMULATED_LACKS");
  return lacks == nullptr || std::string_view(lacks).find(what) == std::string_view::npos;
}

std::unique_ptr<autosp::executor::Backend> open(const autosp::executor::BackendOptions& /*given*/) {
  return std::make_unique<autosp::test::EmulatedBackend>(
      autosp::test::EmulatedOptions{.captures = has("capture"), .compiles = has("compiler")});
}

}  // namespace

extern "C" __attribute__((visibility("default")))
const autosp::executor::ModuleEntry autosp_device_module;
const autosp::executor::ModuleEntry autosp_device_module = {autosp::executor::kModuleVersion,
                                                            AUTOSP_BUILD, survey, open};

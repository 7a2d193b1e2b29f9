// The emulated device in place of CUDA's: AUTOSP_CUDA_MODULE=.../libautosp_emulated.so, for tests
// of what runs with --device cuda.
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

std::unique_ptr<autosp::executor::Backend> open(const autosp::executor::BackendOptions& /*given*/) {
  return std::make_unique<autosp::test::EmulatedBackend>();
}

}  // namespace

extern "C" __attribute__((visibility("default")))
const autosp::executor::ModuleEntry autosp_device_module;
const autosp::executor::ModuleEntry autosp_device_module = {autosp::executor::kModuleVersion,
                                                            AUTOSP_BUILD, survey, open};

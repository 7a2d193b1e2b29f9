#include "support/devices.h"

#include "base/error.h"
#include "executor/device_module.h"
#include "support/emulated_device.h"

namespace autosp::test {

std::vector<std::string> device_names() { return {"emulated", "emulated_backwards", "cuda"}; }

FoundDevice find_device(const std::string& name) {
  if (name == "emulated") return {std::make_shared<EmulatedBackend>(), ""};
  if (name == "emulated_backwards") {
    return {std::make_shared<EmulatedBackend>(EmulatedOptions{.backwards = true}), ""};
  }
  try {
    return {executor::open_backend(name), ""};
  } catch (const Error& error) {
    return {nullptr, error.message()};
  }
}

}  // namespace autosp::test

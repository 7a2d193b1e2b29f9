// The code for one kind of device, in a library of its own that is opened when it is asked for: a
// run on the CPU loads nothing of it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "executor/device.h"

namespace autosp::executor {

struct DeviceInfo {
  std::string name;          // "NVIDIA H200"
  std::string architecture;  // "sm_90"
  int64_t memory = 0;        // bytes
  int multiprocessors = 0;
};

// What a module finds on this machine. Asking allocates nothing on a device.
struct DeviceSurvey {
  std::string toolkit;  // what the module was built with: "CUDA 13.0"
  std::string driver;   // the newest CUDA that the driver runs; empty without a driver
  std::vector<std::string> architectures;  // that it has machine code for
  struct Library {
    std::string name;     // "cuBLASLt"
    std::string version;  // empty: not found
  };
  std::vector<Library> libraries;
  std::vector<DeviceInfo> devices;
  std::string reason;  // why there are none
};

struct BackendOptions {
  bool tf32 = false;  // products of float32 may round their operands to 10 bits
};

// The one symbol that a module exports, `autosp_device_module`. Its first two members stay as they
// are; the others belong to `version`.
struct ModuleEntry {
  uint32_t version;
  const char* build;  // of the program that it belongs to
  DeviceSurvey (*survey)();
  // Throws Error where there is no device.
  std::unique_ptr<Backend> (*open)(const BackendOptions&);
};
inline constexpr uint32_t kModuleVersion = 2;
inline constexpr const char* kModuleSymbol = "autosp_device_module";

// The module of CUDA devices, opened once; null where this build has none. Throws Error for one
// that cannot be opened or that belongs to another build.
const ModuleEntry* cuda_module();

// Where it is looked for, in order: $AUTOSP_CUDA_MODULE alone, if that is set.
std::vector<std::filesystem::path> cuda_module_places();

// The backend of `device`, "cpu" or "cuda"; null for the CPU. Throws Error where there is no such
// device.
std::shared_ptr<Backend> open_backend(const std::string& device,
                                      const BackendOptions& options = {});

}  // namespace autosp::executor

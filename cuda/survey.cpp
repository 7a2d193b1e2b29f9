#include "cuda/survey.h"

#include <sstream>

#include "cuda/library.h"
#include "cuda/status.h"

namespace autosp::cuda {

namespace {

// CUDA counts 13000 for 13.0.
std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

// "90,100a-real", as CMake has them.
std::vector<std::string> architectures() {
  std::vector<std::string> names;
  std::istringstream list(AUTOSP_CUDA_ARCHITECTURES);
  for (std::string name; std::getline(list, name, ',');) {
    names.push_back("sm_" + name.substr(0, name.find('-')));
  }
  return names;
}

std::string library_version(const Library& library) {
  if (void* version = library.find("cublasLtGetVersion")) {
    const size_t number = reinterpret_cast<size_t (*)()>(version)();
    return fmt::format("{}.{}.{}", number / 10000, number / 100 % 100, number % 100);
  }
  if (void* version = library.find("cudnnGetVersion")) {
    const size_t number = reinterpret_cast<size_t (*)()>(version)();
    return fmt::format("{}.{}.{}", number / 10000, number / 100 % 100, number % 100);
  }
  if (void* version = library.find("ncclGetVersion")) {
    int number = 0;
    if (reinterpret_cast<int (*)(int*)>(version)(&number) != 0) return "";
    return fmt::format("{}.{}.{}", number / 10000, number / 100 % 100, number % 100);
  }
  if (void* version = library.find("nvrtcVersion")) {
    int major = 0;
    int minor = 0;
    if (reinterpret_cast<int (*)(int*, int*)>(version)(&major, &minor) != 0) return "";
    return fmt::format("{}.{}", major, minor);
  }
  return "";
}

executor::DeviceInfo describe(int device) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "asking what a device is");
  return {.name = properties.name,
          .architecture = fmt::format("sm_{}{}", properties.major, properties.minor),
          .memory = static_cast<int64_t>(properties.totalGlobalMem),
          .multiprocessors = properties.multiProcessorCount};
}

}  // namespace

executor::DeviceSurvey survey() {
  executor::DeviceSurvey found;
  found.toolkit = "CUDA " + version_text(CUDART_VERSION);
  found.architectures = architectures();
  for (const Library* library : {&cublaslt(), &cudnn(), &nccl(), &nvrtc()}) {
    found.libraries.push_back({library->name(), library_version(*library)});
  }
  int driver = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0) {
    found.driver = version_text(driver);
  }
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (found.driver.empty()) {
    found.reason = "there is no NVIDIA driver";
  } else if (status != cudaSuccess) {
    found.reason = cudaGetErrorString(status);
  } else if (count == 0) {
    found.reason = "the driver finds no device";
  }
  cudaGetLastError();
  if (status != cudaSuccess) return found;
  for (int device = 0; device < count; ++device) found.devices.push_back(describe(device));
  return found;
}

}  // namespace autosp::cuda

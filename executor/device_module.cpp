#include "executor/device_module.h"

#include <dlfcn.h>
#include <fmt/ranges.h>

#include <cstdlib>
#include <optional>

#include "base/error.h"

namespace autosp::executor {

namespace {

constexpr const char* kFile = "libautosp_cuda.so";

Error unusable(const std::filesystem::path& path, const std::string& why) {
  return Error("'{}' cannot be used: {}", path.string(), why)
      .note("it holds this program's code for CUDA devices")
      .help("install program and library from one build, or run with --device cpu");
}

const ModuleEntry* open_module(const std::filesystem::path& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw unusable(path, dlerror());
  const auto* entry = static_cast<const ModuleEntry*>(dlsym(library, kModuleSymbol));
  if (entry == nullptr) throw unusable(path, fmt::format("it has no '{}'", kModuleSymbol));
  if (entry->version != kModuleVersion || std::string(entry->build) != AUTOSP_BUILD) {
    throw unusable(path, fmt::format("it is of build {}, interface {}; this program is build {}, "
                                     "interface {}",
                                     entry->build, entry->version, AUTOSP_BUILD, kModuleVersion));
  }
  return entry;
}

Error no_backend() {
  std::vector<std::string> places;
  for (const auto& place : cuda_module_places()) places.push_back("'" + place.string() + "'");
  return Error("this program was built without CUDA")
      .note(fmt::format("there is no {}", fmt::join(places, ", nor ")))
      .help("run with --device cpu, or build where a CUDA toolkit is (cmake -DAUTOSP_CUDA=ON)");
}

}  // namespace

std::vector<std::filesystem::path> cuda_module_places() {
  if (const char* given = std::getenv("AUTOSP_CUDA_MODULE")) return {given};
  std::error_code ignored;
  const auto folder = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  std::vector<std::filesystem::path> places = {folder.parent_path() / "lib" / kFile};
  const auto installed = folder.parent_path() / AUTOSP_LIBRARY_FOLDER / kFile;
  if (installed != places.front()) places.push_back(installed);
  return places;
}

const ModuleEntry* cuda_module() {
  static const ModuleEntry* const kModule = []() -> const ModuleEntry* {
    for (const auto& place : cuda_module_places()) {
      if (std::filesystem::exists(place)) return open_module(place);
    }
    return nullptr;
  }();
  return kModule;
}

std::shared_ptr<Backend> open_backend(const std::string& device, const BackendOptions& options) {
  if (device == "cpu") return nullptr;
  AUTOSP_CHECK(device == "cuda", "device '{}'", device);
  const ModuleEntry* module = cuda_module();
  if (module == nullptr) throw no_backend();
  return module->open(options);
}

}  // namespace autosp::executor

#include "cuda/library.h"

#include <dlfcn.h>
#include <fmt/ranges.h>

#include <cstdlib>

#include "base/error.h"

namespace autosp::cuda {

namespace {

// Where toolkits put libraries that the dynamic linker was not told of.
std::vector<std::string> folders() {
  std::vector<std::string> result = {""};
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
    if (const char* root = std::getenv(variable)) result.push_back(std::string(root) + "/lib64/");
  }
  result.emplace_back("/usr/local/cuda/lib64/");
  return result;
}

}  // namespace

Library::Library(std::string name, std::initializer_list<const char*> files)
    : name_(std::move(name)), files_(files.begin(), files.end()) {
  for (const std::string& folder : folders()) {
    for (const std::string& file : files_) {
      handle_ = dlopen((folder + file).c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle_ != nullptr) return;
    }
  }
}

void* Library::find(const char* symbol) const {
  return handle_ == nullptr ? nullptr : dlsym(handle_, symbol);
}

void* Library::require(const char* symbol) const {
  if (handle_ == nullptr) {
    throw Error("{} was not found", name_)
        .note(fmt::format("the dynamic linker knows no {}, and /usr/local/cuda/lib64 has none",
                          fmt::join(files_, ", no ")))
        .help("install it, or name its folder in LD_LIBRARY_PATH");
  }
  void* found = dlsym(handle_, symbol);
  if (found == nullptr) {
    throw Error("{} has no '{}'", name_, symbol)
        .note("it is older than what this program was built for")
        .help("install the version that 'autosp-onnx devices' names, or a newer one");
  }
  return found;
}

const Library& cublaslt() {
  static const Library kLibrary("cuBLASLt", {"libcublasLt.so.13"});
  return kLibrary;
}

const Library& cudnn() {
  static const Library kLibrary("cuDNN", {"libcudnn.so.9"});
  return kLibrary;
}

const Library& cudart() {
  static const Library kLibrary("CUDA's runtime", {"libcudart.so.13"});
  return kLibrary;
}

const Library& nccl() {
  static const Library kLibrary("NCCL", {"libnccl.so.2"});
  return kLibrary;
}

const Library& nvrtc() {
  static const Library kLibrary("NVRTC", {"libnvrtc.so.13"});
  return kLibrary;
}

}  // namespace autosp::cuda

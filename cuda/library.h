// A library of CUDA's that is opened when it is first used.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

namespace autosp::cuda {

class Library {
 public:
  // The first of `files` that the dynamic linker finds, or that lies in the toolkit's folder.
  Library(std::string name, std::initializer_list<const char*> files);

  const std::string& name() const { return name_; }
  void* handle() const { return handle_; }  // null: not found
  // Null where the library or the symbol is missing.
  void* find(const char* symbol) const;
  // Throws Error where either is missing.
  template <typename Function>
  Function* function(const char* symbol) const {
    return reinterpret_cast<Function*>(require(symbol));
  }

 private:
  void* require(const char* symbol) const;

  std::string name_;
  std::vector<std::string> files_;
  void* handle_ = nullptr;
};

// One each per process.
const Library& cublaslt();
const Library& cudnn();
const Library& nccl();
const Library& nvrtc();
const Library& cudart();  // which cuDNN's front end uses; this library has CUDA's runtime in it

}  // namespace autosp::cuda

// One file for the large tensors that several models have in common.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "ir/graph.h"

namespace autosp::onnx_io {

class DataFile {
 public:
  // `location` is the file's name, beside the models that refer to it.
  explicit DataFile(std::string location) : location_(std::move(location)) {}

  void add(const std::string& name, ir::Tensor tensor);
  bool empty() const { return entries_.empty(); }

  // Where a constant's bytes lie, when it was added under that name, bit for bit.
  std::optional<ir::ExternalData> find(const std::string& name, const ir::Tensor& tensor) const;

  // Throws Error when the system refuses.
  void write(const std::filesystem::path& folder) const;

 private:
  struct Entry {
    ir::Tensor tensor;
    int64_t offset = 0;  // bytes
  };

  std::string location_;
  std::map<std::string, Entry> entries_;
  int64_t end_ = 0;
};

}  // namespace autosp::onnx_io

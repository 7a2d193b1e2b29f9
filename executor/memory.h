// The two kinds of memory a run works in: an arena, and files mapped read-only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <vector>

#include "executor/shared_memory.h"
#include "ir/graph.h"
#include "ir/tensor.h"

namespace autosp::executor {

// Zero-filled pages, resident from first touch.
class Arena {
 public:
  // With `shared`, other processes may be told where it is.
  explicit Arena(int64_t bytes, bool shared = false);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  std::byte* at(int64_t offset) const { return base_ + offset; }
  int64_t touched_bytes() const;  // resident pages
  SharedRegion region() const;    // nothing unless it is shared

  // Gives back all pages but those of these stretches; the others read as zero afterwards.
  struct Stretch {
    int64_t offset = 0;
    int64_t size = 0;
  };
  void keep_only(std::vector<Stretch> kept);
  // Gives back the pages that lie in this stretch as a whole.
  void release(Stretch stretch);

 private:
  std::byte* base_ = nullptr;
  size_t size_ = 0;
  int file_ = -1;  // of the shared memory
  RegionToken token_{};
};

// External data of a model: files are mapped when first asked for and unmapped with this object.
class MappedFiles {
 public:
  explicit MappedFiles(std::filesystem::path folder) : folder_(std::move(folder)) {}
  ~MappedFiles();
  MappedFiles(const MappedFiles&) = delete;
  MappedFiles& operator=(const MappedFiles&) = delete;

  // The bytes of an initializer. Throws Error when the file is missing or too short.
  const std::byte* data(const ir::Value& value);

 private:
  struct Mapping {
    const std::byte* base = nullptr;
    size_t size = 0;
  };
  const Mapping& mapping(const ir::Value& value);

  std::filesystem::path folder_;
  std::map<std::string, Mapping> files_;      // by location
  std::map<std::string, ir::Tensor> copies_;  // of data that is not aligned for its type, by name
};

}  // namespace autosp::executor

// The data that a model is trained on.
#pragma once

#include <filesystem>
#include <vector>

#include "executor/npz.h"
#include "onnx/manifest.h"

namespace autosp::cli {

// Batches, whole: ranks take their slices. `path` is an .npz file whose arrays have the shapes of
// the model's inputs (one batch), or one axis more before them (as many batches as it is long), or
// a folder of such files, taken in the order of their names.
class Batches {
 public:
  Batches(const std::filesystem::path& path, const onnx_io::Manifest& manifest);
  // One batch each; parameters are taken from the first of them, unless `initial` has them.
  Batches(const std::vector<executor::Arrays>& batches, const executor::Arrays& initial,
          const onnx_io::Manifest& manifest);

  size_t count() const;
  // Batch `index` modulo count().
  executor::Arrays at(size_t index) const;
  // The other arrays of the files: parameters, where they hold these too.
  const executor::Arrays& others() const { return others_; }

 private:
  struct File {
    executor::Arrays arrays;
    size_t batches = 1;
  };
  void add(executor::Arrays arrays, const std::string& where);

  std::vector<onnx_io::ManifestInput> inputs_;  // data
  std::vector<File> files_;
  executor::Arrays others_;
};

}  // namespace autosp::cli

#include "training/batches.h"

#include <algorithm>

#include "base/error.h"
#include "feeds.h"

namespace autosp::cli {

using executor::Arrays;
using ir::Tensor;

namespace {

ir::Shape with_count(int64_t count, const ir::Shape& shape) {
  ir::Shape result = {count};
  result.insert(result.end(), shape.begin(), shape.end());
  return result;
}

std::vector<onnx_io::ManifestInput> data_inputs(const onnx_io::Manifest& manifest) {
  std::vector<onnx_io::ManifestInput> inputs = manifest.inputs;
  const std::string step = manifest.random ? manifest.random->step_input : "";
  std::erase_if(inputs, [&](const auto& input) {
    return input.role != onnx_io::InputRole::kData || input.name == step;
  });
  return inputs;
}

// How many batches the array holds; 0 when it does not fit.
size_t batches_in(const Tensor& array, const ir::Type& one) {
  if (array.dtype() != one.dtype) return 0;
  if (array.shape() == one.shape) return 1;
  if (array.shape().empty() || array.shape() != with_count(array.shape()[0], one.shape)) return 0;
  return static_cast<size_t>(array.shape()[0]);
}

}  // namespace

Batches::Batches(const std::filesystem::path& path, const onnx_io::Manifest& manifest)
    : inputs_(data_inputs(manifest)) {
  std::vector<std::filesystem::path> files = {path};
  if (std::filesystem::is_directory(path)) {
    files.clear();
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      if (entry.path().extension() == ".npz") files.push_back(entry.path());
    }
    std::ranges::sort(files);
    if (files.empty()) {
      throw Error("there is no .npz file in '{}'", path.string())
          .note("it is given as --data")
          .help("give a file of batches, or a folder of such files");
    }
  }
  for (const auto& file : files) {
    add(executor::read_npz(file), fmt::format("'{}'", file.string()));
  }
}

Batches::Batches(const std::vector<Arrays>& batches, const Arrays& initial,
                 const onnx_io::Manifest& manifest)
    : inputs_(data_inputs(manifest)), others_(initial) {
  for (const Arrays& batch : batches) add(batch, "the data");
}

void Batches::add(Arrays arrays, const std::string& where) {
  File file;
  bool counted = false;  // by an array with an axis for the batches, even of one
  for (const onnx_io::ManifestInput& input : inputs_) {
    const auto found = arrays.find(input.name);
    if (found != arrays.end()) found->second = as_fed(found->second, input.type.dtype);
    const size_t count = found == arrays.end() ? 0 : batches_in(found->second, input.type);
    if (count == 0) {
      throw Error("{} has no batches of '{}'", where, input.name)
          .note(found == arrays.end()
                    ? "it has no array of that name"
                    : fmt::format("its array is {}", ir::to_string(found->second.type())))
          .help(fmt::format("give {}, or as many of them along an axis before these",
                            ir::to_string(input.type)));
    }
    if (found->second.shape() != input.type.shape) {
      if (counted && file.batches != count) {
        throw Error("{} holds {} batches of '{}', but {} of another input", where, count,
                    input.name, file.batches)
            .note("the first axis counts the batches")
            .help("give as many of every input");
      }
      file.batches = count;
      counted = true;
    }
    file.arrays.insert(arrays.extract(found));
  }
  files_.push_back(std::move(file));
  others_.merge(arrays);
}

size_t Batches::count() const {
  size_t count = 0;
  for (const File& file : files_) count += file.batches;
  return count;
}

Arrays Batches::at(size_t index) const {
  index %= count();
  auto file = files_.begin();
  while (index >= file->batches) index -= (file++)->batches;
  Arrays batch;
  for (const onnx_io::ManifestInput& input : inputs_) {
    const Tensor& array = file->arrays.at(input.name);
    if (array.shape() == input.type.shape) {
      batch[input.name] = array;
      continue;
    }
    std::vector<int64_t> begin(array.shape().size(), 0);
    begin[0] = static_cast<int64_t>(index);
    batch[input.name] =
        array.block(begin, with_count(1, input.type.shape)).reshaped(input.type.shape);
  }
  return batch;
}

}  // namespace autosp::cli

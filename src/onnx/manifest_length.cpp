#include "onnx/manifest_length.h"

#include <algorithm>

#include "base/error.h"

namespace autosp::onnx_io {

namespace {

void grow(std::vector<int64_t>& numbers, const std::vector<int64_t>& growth, int64_t units) {
  for (size_t k = 0; k < numbers.size(); ++k) numbers[k] += growth[k] * units;
}

}  // namespace

std::string allowed_lengths(const ManifestOpenLength& open) {
  return fmt::format("multiples of {} from {}{}", open.multiple, open.minimum,
                     open.maximum == 0 ? " on" : fmt::format(" to {}", open.maximum));
}

Manifest at_length(const Manifest& manifest, int64_t length) {
  const ManifestOpenLength& open = *manifest.open_length;
  const bool too_long = open.maximum != 0 && length > open.maximum;
  if (length % open.multiple != 0 || length < open.minimum || too_long) {
    throw Error("{}={} is no length that these graphs take: {}", open.dim, length,
                allowed_lengths(open))
        .note(fmt::format("'{}' was sharded for several lengths at once", manifest.model_name))
        .help(
            fmt::format("give inputs of another length, or shard the model again with --dim {}={}",
                        open.dim, length));
  }
  const int64_t units = (length - open.planned) / open.multiple;
  Manifest result = manifest;
  for (ManifestDim& dim : result.dims) {
    if (dim.name == open.dim) dim.value = length;
  }
  for (const ManifestGrowth& growth : open.inputs) {
    ManifestInput& input = *std::ranges::find(result.inputs, growth.name, &ManifestInput::name);
    grow(input.type.shape, growth.shape, units);
    for (size_t rank = 0; rank < input.slices.size(); ++rank) {
      grow(input.slices[rank].begin, growth.slices[rank].begin, units);
      grow(input.slices[rank].extent, growth.slices[rank].extent, units);
    }
  }
  for (const ManifestGrowth& growth : open.outputs) {
    grow(std::ranges::find(result.outputs, growth.name, &ManifestOutput::name)->type.shape,
         growth.shape, units);
  }
  return result;
}

int64_t length_of(const Manifest& manifest, const std::map<std::string, ir::Shape>& shapes) {
  const ManifestOpenLength& open = *manifest.open_length;
  for (const ManifestGrowth& growth : open.inputs) {
    const auto found = shapes.find(growth.name);
    if (found == shapes.end() || found->second.size() != growth.shape.size()) continue;
    const ManifestInput& input =
        *std::ranges::find(manifest.inputs, growth.name, &ManifestInput::name);
    for (size_t k = 0; k < growth.shape.size(); ++k) {
      if (growth.shape[k] == 0) continue;
      const int64_t more = (found->second[k] - input.type.shape[k]) * open.multiple;
      if (more % growth.shape[k] == 0) return open.planned + more / growth.shape[k];
      throw Error("'{}' of shape {} has no length that these graphs take: {}", growth.name,
                  ir::to_string(found->second), allowed_lengths(open))
          .note(fmt::format("its shape is {} where '{}' is {}", ir::to_string(input.type.shape),
                            open.dim, open.planned))
          .help("give inputs of another length");
    }
  }
  const std::string name = open.inputs.empty() ? "" : open.inputs.front().name;
  throw Error(
      "the length of the sequence does not follow from the inputs: '{}' is missing, or has "
      "another number of dimensions",
      name)
      .note(fmt::format("'{}' was sharded for several lengths at once: {}", manifest.model_name,
                        allowed_lengths(open)))
      .help("give every graph input, whole (ranks take their slices), with its shape and type");
}

}  // namespace autosp::onnx_io

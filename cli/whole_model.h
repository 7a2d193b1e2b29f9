// The model that a folder was sharded from.
#pragma once

#include <filesystem>

#include "ir/graph.h"
#include "onnx/manifest.h"

namespace autosp::cli {

// The model as it is, at the dimensions it was sharded for. Throws Error when it is not the one
// that the manifest of `folder` names.
ir::Graph load_whole(const std::filesystem::path& model, const std::filesystem::path& folder,
                     const onnx_io::Manifest& manifest);

}  // namespace autosp::cli

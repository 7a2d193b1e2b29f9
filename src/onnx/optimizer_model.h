// The optimizer model of ONNX Runtime's training artifacts: which optimizer, with which settings.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "ir/graph.h"

namespace autosp::onnx_io {

struct PlainNode {
  std::string domain;
  std::string op;
  ir::Attributes attributes;
};

// The nodes of a file's graph, whatever types its values have (optimizer models use sequences of
// tensors). Throws Error for what is not an ONNX file.
std::vector<PlainNode> read_nodes(const std::filesystem::path& path);

}  // namespace autosp::onnx_io

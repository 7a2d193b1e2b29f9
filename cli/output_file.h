// Files that a run writes, named by the user: checked before the run, written after it.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "onnx/manifest.h"

namespace autosp::cli {

struct OutputFile {
  std::string option;  // that names it, for messages
  std::filesystem::path path;
};

struct InputFile {
  std::string option;  // likewise
  std::filesystem::path path;
};

// Throws Error for an output that could not be written after the run, that another option names
// too, or that the run reads. Empty paths are left out.
void check_output_files(const std::vector<OutputFile>& outputs,
                        const std::vector<InputFile>& inputs);
// Likewise, and for one that is a graph, the manifest or weights of the sharded model in `folder`.
void check_output_files(const std::vector<OutputFile>& outputs,
                        const std::vector<InputFile>& inputs, const std::filesystem::path& folder,
                        const onnx_io::Manifest& manifest);

// Calls `write` with the path to write to. What exists and is no regular file, such as a device or
// a pipe, is written through instead of replaced.
void write_output_file(const std::filesystem::path& path,
                       const std::function<void(const std::filesystem::path&)>& write);

}  // namespace autosp::cli

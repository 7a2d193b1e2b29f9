// Files that appear complete or not at all.
#pragma once

#include <filesystem>
#include <string_view>

namespace autosp::onnx_io {

// Writes beside `path` and renames. Throws Error naming the path when the system refuses.
void write_file(const std::filesystem::path& path, std::string_view bytes);

}  // namespace autosp::onnx_io

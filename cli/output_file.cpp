#include "output_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "onnx/model.h"

namespace autosp::cli {

namespace {

namespace fs = std::filesystem;

// A device, a pipe or a socket, or what the system calls one (/dev/stdout may lead to a file).
bool is_special(const fs::path& path) {
  std::error_code code;
  const fs::file_status status = fs::status(path, code);
  if (!fs::exists(status)) return false;
  const std::string name = fs::absolute(path).lexically_normal().string();
  return fs::is_other(status) || name.starts_with("/dev/") || name.starts_with("/proc/");
}

fs::path resolved(const fs::path& path) {
  std::error_code code;
  return fs::weakly_canonical(fs::absolute(path), code);
}

bool same_file(const fs::path& a, const fs::path& b) {
  std::error_code code;
  return fs::equivalent(a, b, code) || resolved(a) == resolved(b);
}

// Whether the file is one of a sharded model: its manifest, graphs and weights.
bool is_part_of(const fs::path& file, const fs::path& folder, const onnx_io::Manifest& manifest) {
  const fs::path name = resolved(file).lexically_relative(resolved(folder));
  if (name.empty() || *name.begin() == ".." || !fs::exists(file)) return false;
  if (name == onnx_io::kManifestFile) return true;
  for (const onnx_io::ManifestRank& rank : manifest.ranks) {
    if (name == rank.file) return true;
    for (const std::string& location : onnx_io::data_locations(folder / rank.file)) {
      if (name == fs::path(location).lexically_normal()) return true;
    }
  }
  return false;
}

[[noreturn]] void refuse(const OutputFile& output, const std::string& reason) {
  throw Error("{} '{}' cannot be written: {}", output.option, output.path.string(), reason)
      .note("looked at before the run, which has not begun")
      .help("name a file in a folder that exists and that you may write to");
}

void check_writable(const OutputFile& output) {
  std::error_code code;
  if (fs::is_directory(output.path, code)) refuse(output, "it is a folder");
  if (!output.path.has_filename()) refuse(output, "it names no file");
  if (is_special(output.path)) {
    if (::access(output.path.c_str(), W_OK) != 0) refuse(output, std::strerror(errno));
    return;
  }
  const fs::path folder = output.path.has_parent_path() ? output.path.parent_path() : ".";
  if (!fs::is_directory(folder, code)) {
    refuse(output, fmt::format("there is no folder '{}'", folder.string()));
  }
  if (::access(folder.c_str(), W_OK | X_OK) != 0) refuse(output, std::strerror(errno));
}

}  // namespace

void check_output_files(const std::vector<OutputFile>& outputs,
                        const std::vector<InputFile>& inputs) {
  for (size_t k = 0; k < outputs.size(); ++k) {
    const OutputFile& output = outputs[k];
    if (output.path.empty()) continue;
    check_writable(output);
    if (is_special(output.path)) continue;
    for (const InputFile& input : inputs) {
      if (input.path.empty() || !same_file(output.path, input.path)) continue;
      throw Error("{} '{}' is the file that {} reads", output.option, output.path.string(),
                  input.option)
          .note("it would be replaced by the results")
          .help("name another file");
    }
    for (size_t other = 0; other < k; ++other) {
      if (outputs[other].path.empty() || !same_file(output.path, outputs[other].path)) continue;
      throw Error("{} and {} both name '{}'", outputs[other].option, output.option,
                  output.path.string())
          .note("one would replace the other")
          .help("give each a file of its own");
    }
  }
}

void check_output_files(const std::vector<OutputFile>& outputs,
                        const std::vector<InputFile>& inputs, const fs::path& folder,
                        const onnx_io::Manifest& manifest) {
  check_output_files(outputs, inputs);
  for (const OutputFile& output : outputs) {
    if (output.path.empty() || is_special(output.path)) continue;
    if (!is_part_of(output.path, folder, manifest)) continue;
    throw Error("{} '{}' is a file of '{}', the sharded model", output.option, output.path.string(),
                folder.string())
        .note("it would be replaced by the results")
        .help("name another file");
  }
}

void write_output_file(const fs::path& path, const std::function<void(const fs::path&)>& write) {
  std::error_code code;
  if (!is_special(path)) {
    // A link stays one: the file that it leads to is replaced.
    write(fs::is_symlink(path, code) ? fs::weakly_canonical(path) : path);
    return;
  }
  std::string folder = (fs::temp_directory_path() / "autosp-onnx.XXXXXX").string();
  if (::mkdtemp(folder.data()) == nullptr) {
    throw Error("cannot write in '{}': {}", fs::temp_directory_path().string(),
                std::strerror(errno))
        .note(
            fmt::format("'{}' is no regular file: what it gets is made there first", path.string()))
        .help("set TMPDIR to a folder that you may write to");
  }
  const fs::path made = fs::path(folder) / "made";
  try {
    write(made);
    std::ofstream to(path, std::ios::binary | std::ios::app);
    to << std::ifstream(made, std::ios::binary).rdbuf() << std::flush;
    if (!to) {
      throw Error("'{}' cannot be written: {}", path.string(), std::strerror(errno))
          .note("it is a device, a pipe or a socket")
          .help("name a regular file");
    }
  } catch (...) {
    fs::remove_all(folder, code);
    throw;
  }
  fs::remove_all(folder, code);
}

}  // namespace autosp::cli

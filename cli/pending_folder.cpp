#include "pending_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "dialects.h"
#include "onnx/manifest.h"
#include "onnx/model.h"
#include "training/arguments.h"

namespace autosp::cli {

namespace {

namespace fs = std::filesystem;

Error not_ours(const fs::path& folder) {
  return Error("'{}' exists and is not a sharded model", folder.string())
      .help("give another folder with -o, or empty this one");
}

// The files in `folder`, relative to it. Links are files, wherever they lead.
std::set<fs::path> files_in(const fs::path& folder) {
  std::set<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_symlink() || !entry.is_directory()) {
      files.insert(entry.path().lexically_relative(folder));
    }
  }
  return files;
}

// "optimizer_rank_12.onnx", "accumulate_rank_12.onnx", and what parameters begin with.
bool is_training_file(const std::string& name) {
  if (name == kInitialFile) return true;
  return std::ranges::any_of(std::array{"optimizer_", "accumulate_"}, [&](std::string_view begin) {
    return name.starts_with(begin) && name.substr(begin.size()).starts_with("rank_") &&
           is_graph_file(name.substr(begin.size()));
  });
}

// The folder that a user is in, or one around it, cannot change places with a new one.
void check_not_around(const fs::path& given, const fs::path& target) {
  const fs::path here = fs::current_path();
  const fs::path at = fs::weakly_canonical(target.empty() ? here : fs::absolute(target));
  const fs::path relative = here.lexically_relative(at);
  if (relative.empty() || *relative.begin() == "..") return;
  throw Error("-o '{}' is the folder that this runs in, or one around it", given.string())
      .note("what a folder holds is replaced together with it, when the new graphs are complete")
      .help("give the name of a folder in it, for example -o out");
}

// A model whose files lie in `folder` would be removed with what the folder held before.
void check_outside(const fs::path& model, const fs::path& folder) {
  const fs::path base = fs::weakly_canonical(folder);
  std::vector<fs::path> files = {model};
  for (const std::string& location : onnx_io::data_locations(model)) {
    files.push_back(model.parent_path() / location);
  }
  for (const fs::path& file : files) {
    // A link that lies in the folder is lost with it, and so is a file that a link leads to there.
    for (const fs::path& at : {fs::absolute(file).lexically_normal(), fs::weakly_canonical(file)}) {
      const fs::path relative = at.lexically_relative(base);
      if (relative.empty() || *relative.begin() == "..") continue;
      throw Error("'{}', which the model is read from, lies in '{}', which is to be written",
                  file.string(), folder.string())
          .note("what the folder holds is replaced when the new graphs are complete")
          .help("give another folder with -o");
    }
  }
}

}  // namespace

void check_replaceable(const fs::path& folder) {
  if (!fs::exists(fs::symlink_status(folder))) return;
  if (!fs::is_directory(folder)) {
    throw Error("'{}' is a file", folder.string())
        .note("the sharded model is a folder of files")
        .help("give the name of a folder with -o");
  }
  if (!fs::exists(folder / onnx_io::kManifestFile)) {
    // One file is enough: this may be a large folder that was given by mistake.
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (entry.is_directory() && !entry.is_symlink()) continue;
      throw not_ours(folder).note(fmt::format("it has no {}, but '{}'", onnx_io::kManifestFile,
                                              entry.path().lexically_relative(folder).string()));
    }
    return;
  }
  std::set<fs::path> files = files_in(folder);
  std::set<fs::path> graphs = {kAnnotatedFile};
  try {
    for (const auto& rank : onnx_io::read_manifest(folder).ranks) {
      graphs.insert(rank.file);
      for (const std::string& dialect : dialect_names()) {
        graphs.insert(graph_file(parse_dialect(dialect), rank.rank));
      }
    }
  } catch (const Error& error) {
    if (!onnx_io::is_manifest(folder)) throw not_ours(folder).note(error.message());
    // Of another version, or damaged: its graphs go by their names.
    for (const fs::path& file : files) {
      if (is_graph_file(file.string())) graphs.insert(file);
    }
  }
  files.erase(onnx_io::kManifestFile);
  std::erase_if(files, [](const fs::path& file) { return is_training_file(file.string()); });
  std::set<fs::path> present;
  for (const fs::path& graph : graphs) {
    if (files.erase(graph) > 0) present.insert(graph);
  }
  // What is left must be data of these graphs, which takes reading them.
  for (auto graph = present.begin(); graph != present.end() && !files.empty(); ++graph) {
    for (const std::string& location : onnx_io::data_locations(folder / *graph)) {
      files.erase(fs::path(location).lexically_normal());
    }
  }
  if (!files.empty()) {
    throw not_ours(folder).note(
        fmt::format("'{}' is no file of a sharded model", files.begin()->string()));
  }
}

void check_target(const fs::path& given, const fs::path& target, const fs::path& model) {
  check_not_around(given, target);
  check_outside(model, target);
  check_replaceable(target);
}

PendingFolder::PendingFolder(fs::path target) : target_(std::move(target)) {
  if (target_.has_parent_path()) {
    std::error_code code;
    fs::create_directories(target_.parent_path(), code);
    if (code || !fs::is_directory(target_.parent_path(), code)) {
      throw Error("'{}' cannot be made: {}", target_.parent_path().string(),
                  code ? code.message() : "it is not a folder")
          .note(fmt::format("'{}' is to be written there", target_.filename().string()))
          .help("give a folder with -o whose parents are folders that you may write to");
    }
  }
  std::string pattern = target_.string() + ".XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) {
    throw Error("cannot write beside '{}': {}", target_.string(), std::strerror(errno))
        .note("the new graphs are made in a folder beside it, which then takes its place")
        .help("give a folder with -o in a place that you may write to");
  }
  path_ = pattern;
  fs::permissions(path_, fs::perms(0755));
}

PendingFolder::~PendingFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void PendingFolder::commit() {
  const fs::path old = path_.string() + ".old";
  const bool replaces = fs::exists(target_);
  // Where the system can, both change places: there always is a complete folder.
  if (replaces &&
      ::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) == 0) {
    return;  // what was there before is removed with this object
  }
  std::error_code code;
  if (replaces) fs::rename(target_, old, code);
  const bool moved = replaces && !code;
  if (!code) fs::rename(path_, target_, code);
  if (code) {
    std::error_code ignored;
    if (moved) fs::rename(old, target_, ignored);
    throw Error("'{}' cannot be put in place: {}", target_.string(), code.message())
        .note("the graphs were complete, in a folder beside it, and are removed again")
        .help("check that the folder around it is writable");
  }
  if (replaces) fs::remove_all(old);
}

}  // namespace autosp::cli

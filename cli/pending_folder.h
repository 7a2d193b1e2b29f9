// A folder that appears in one step, or not at all.
#pragma once

#include <filesystem>

namespace autosp::cli {

// Throws Error unless a sharded model may take the place of `folder`: it is absent, empty, or an
// earlier result, a folder in which every file is one that `shard` writes.
void check_replaceable(const std::filesystem::path& folder);

// Throws Error unless `target`, given with -o as `given`, is replaceable, is not the folder that
// this runs in or around it, and holds no file that the model is read from.
void check_target(const std::filesystem::path& given, const std::filesystem::path& target,
                  const std::filesystem::path& model);

// A folder beside the final one, removed again unless it takes its place.
class PendingFolder {
 public:
  explicit PendingFolder(std::filesystem::path target);
  ~PendingFolder();
  PendingFolder(const PendingFolder&) = delete;
  PendingFolder& operator=(const PendingFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

  // Puts it in the target's place, whose files are removed.
  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path path_;
};

}  // namespace autosp::cli

#include "training/checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <charconv>

#include "base/error.h"

namespace autosp::cli {

namespace {

constexpr std::string_view kBegin = "step_";
constexpr std::string_view kEnd = ".npz";

// Of "step_00000012.npz"; nullopt for other names, such as those of files that are being written.
std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kBegin) || !name.ends_with(kEnd)) return std::nullopt;
  const char* first = name.data() + kBegin.size();
  const char* last = name.data() + name.size() - kEnd.size();
  int64_t step = 0;
  const auto [end, error] = std::from_chars(first, last, step);
  return error == std::errc() && end == last ? std::optional(step) : std::nullopt;
}

// Onto the disk: a name may get there before what it names does.
void flush_to_disk(const std::filesystem::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  ::fsync(file);
  ::close(file);
}

executor::Arrays read_checkpoint(const std::filesystem::path& file) {
  try {
    return executor::read_npz(file);
  } catch (const Error& error) {
    throw Error("the latest checkpoint cannot be read: {}", error.message())
        .note("it had its name when it was complete, so it was damaged since")
        .help(fmt::format("remove '{}': --resume then goes on from the one before", file.string()));
  }
}

}  // namespace

void make_checkpoint_folder(const std::filesystem::path& folder) {
  std::error_code problem;
  std::filesystem::create_directories(folder, problem);
  if (!problem && ::access(folder.c_str(), W_OK | X_OK) == 0) return;
  if (!problem) problem = {errno, std::generic_category()};
  throw Error("'{}' cannot hold checkpoints: {}", folder.string(), problem.message())
      .note("one is written after the last step, and after every K steps with --every K")
      .help("give a folder with --checkpoint that you may write to, or that can be made");
}

void write_checkpoint(const std::filesystem::path& folder, int64_t step, executor::Arrays whole) {
  std::filesystem::create_directories(folder);
  whole[kStepArray] = ir::Tensor::int64s({step});
  const auto file = folder / fmt::format("{}{:08}{}", kBegin, step, kEnd);
  executor::write_npz(file, whole);
  flush_to_disk(file);
  flush_to_disk(folder);
}

std::optional<std::filesystem::path> latest_checkpoint_file(const std::filesystem::path& folder) {
  std::optional<std::filesystem::path> latest;
  if (!std::filesystem::is_directory(folder)) return latest;
  int64_t latest_step = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const auto step = step_of(entry.path().filename().string());
    if (!step || (latest && *step <= latest_step)) continue;
    latest = entry.path();
    latest_step = *step;
  }
  return latest;
}

std::optional<Checkpoint> latest_checkpoint(const std::filesystem::path& folder) {
  const auto file = latest_checkpoint_file(folder);
  if (!file) return std::nullopt;
  Checkpoint latest{
      .step = *step_of(file->filename().string()), .file = *file, .arrays = read_checkpoint(*file)};
  const auto found = latest.arrays.find(kStepArray);
  if (found == latest.arrays.end() || is_floating(found->second.dtype()) ||
      found->second.as_int64s() != std::vector{latest.step}) {
    throw Error("'{}' is not a checkpoint of step {}", latest.file.string(), latest.step)
        .note("its array 'step' says otherwise")
        .help("remove it, or give another folder with --checkpoint");
  }
  latest.arrays.erase(found);
  return latest;
}

}  // namespace autosp::cli

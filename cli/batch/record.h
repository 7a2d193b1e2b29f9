// What a result was made from, so that it is made again only when that has changed.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "batch/job.h"

namespace autosp::cli::batch {

// A file as it was when it was read, or written.
struct FileState {
  std::filesystem::path path;
  int64_t bytes = 0;
  int64_t modified = 0;     // nanoseconds since 1970
  std::string fingerprint;  // of its contents; "" beyond kMostFingerprinted
};

// Files beyond are told by size and time alone.
inline constexpr int64_t kMostFingerprinted = int64_t{256} << 20;

struct Record {
  std::string tool;  // version and fingerprint of this program
  std::vector<std::string> command_line;
  std::vector<FileState> inputs;   // the model and its data files
  std::vector<FileState> outputs;  // the files of the result, without fingerprints
};

// Of this program.
std::string tool_fingerprint();

// The model, the data files it names, and a file that describes the device. Throws Error for a
// model that cannot be read.
std::vector<std::filesystem::path> input_files(const Job& job);

// Of a job that was converted just now. `seen` are its inputs as they were before.
Record make_record(const Job& job, const std::string& tool, std::vector<FileState> seen);
std::vector<FileState> look_at(const std::vector<std::filesystem::path>& files);

// Whether the result is what the job would give. A file that was touched and says the same is
// unchanged.
bool is_up_to_date(const Job& job, const std::string& tool, const std::optional<Record>& record);

// Nothing when there is none, or none that can be read.
std::optional<Record> read_record(const std::filesystem::path& path);
void write_record(const std::filesystem::path& path, const Record& record);

}  // namespace autosp::cli::batch

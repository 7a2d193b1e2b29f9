#include "batch/record.h"

#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "json_text.h"
#include "model_arguments.h"
#include "onnx/atomic_file.h"
#include "onnx/manifest.h"

namespace autosp::cli::batch {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string contents(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Nothing when the system does not tell.
std::optional<FileState> status_of(const fs::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return std::nullopt;
  return FileState{
      .path = path,
      .bytes = status.st_size,
      .modified = int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + int64_t{status.st_mtim.tv_nsec},
      .fingerprint = ""};
}

std::vector<FileState> files_of(const fs::path& folder) {
  std::vector<FileState> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (auto file = status_of(entry.path()); file && !entry.is_directory()) {
      files.push_back(std::move(*file));
    }
  }
  return files;
}

bool is_as_written(const FileState& before) {
  const auto now = status_of(before.path);
  return now && now->bytes == before.bytes && now->modified == before.modified;
}

std::string fingerprint_of(const FileState& file) {
  return file.bytes > kMostFingerprinted ? "" : onnx_io::fingerprint(contents(file.path));
}

bool is_unchanged(const FileState& before) {
  const auto now = status_of(before.path);
  if (!now || now->bytes != before.bytes) return false;
  if (now->modified == before.modified) return true;
  return !before.fingerprint.empty() && fingerprint_of(*now) == before.fingerprint;
}

}  // namespace

std::string tool_fingerprint() {
  return fmt::format("{} {}", AUTOSP_VERSION, onnx_io::fingerprint(contents("/proc/self/exe")));
}

std::vector<fs::path> input_files(const Job& job) {
  std::vector<fs::path> named;
  for (const std::string& option : job.options) {
    for (const std::string_view name : {"--device=", "--deepspeed-config="}) {
      if (option.starts_with(name)) named.emplace_back(option.substr(name.size()));
    }
  }
  return files_read(job.model, named);
}

std::vector<FileState> look_at(const std::vector<fs::path>& files) {
  std::vector<FileState> result;
  for (const fs::path& path : files) {
    auto file = status_of(path);
    if (!file) continue;  // shard says so
    file->fingerprint = fingerprint_of(*file);
    result.push_back(std::move(*file));
  }
  return result;
}

Record make_record(const Job& job, const std::string& tool, std::vector<FileState> seen) {
  return {.tool = tool,
          .command_line = job.command_line(),
          .inputs = std::move(seen),
          .outputs = files_of(job.output)};
}

bool is_up_to_date(const Job& job, const std::string& tool, const std::optional<Record>& record) {
  return record && record->tool == tool && record->command_line == job.command_line() &&
         !record->inputs.empty() && std::ranges::all_of(record->inputs, is_unchanged) &&
         !record->outputs.empty() && std::ranges::all_of(record->outputs, is_as_written);
}

namespace {

Json to_json(const std::vector<FileState>& files) {
  Json result = Json::array();
  for (const FileState& file : files) {
    result.push_back({{"path", file.path.string()},
                      {"bytes", file.bytes},
                      {"modified", file.modified},
                      {"fingerprint", file.fingerprint}});
  }
  return result;
}

std::vector<FileState> files_from(const Json& json) {
  std::vector<FileState> files;
  for (const Json& file : json) {
    files.push_back({.path = file.at("path").get<std::string>(),
                     .bytes = file.at("bytes"),
                     .modified = file.at("modified"),
                     .fingerprint = file.at("fingerprint")});
  }
  return files;
}

}  // namespace

std::optional<Record> read_record(const fs::path& path) {
  const Json json = Json::parse(contents(path), nullptr, false);
  try {
    return Record{.tool = json.at("tool"),
                  .command_line = json.at("command_line"),
                  .inputs = files_from(json.at("inputs")),
                  .outputs = files_from(json.at("outputs"))};
  } catch (const Json::exception&) {  // none, or cut off
    return std::nullopt;
  }
}

void write_record(const fs::path& path, const Record& record) {
  const Json json = {{"tool", record.tool},
                     {"command_line", record.command_line},
                     {"inputs", to_json(record.inputs)},
                     {"outputs", to_json(record.outputs)}};
  onnx_io::write_file(path, json_text(json) + "\n");
}

}  // namespace autosp::cli::batch

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
std::optional<InputFile> status_of(const fs::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return std::nullopt;
  return InputFile{
      .path = path,
      .bytes = status.st_size,
      .modified = int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + int64_t{status.st_mtim.tv_nsec},
      .fingerprint = ""};
}

std::string fingerprint_of(const InputFile& file) {
  return file.bytes > kMostFingerprinted ? "" : onnx_io::fingerprint(contents(file.path));
}

bool is_unchanged(const InputFile& before) {
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
  std::vector<fs::path> files = files_read(job.model);
  constexpr std::string_view kDevice = "--device=";
  for (const std::string& option : job.options) {
    if (!option.starts_with(kDevice)) continue;
    const fs::path file = option.substr(kDevice.size());
    if (fs::is_regular_file(file)) files.push_back(fs::absolute(file));
  }
  return files;
}

std::vector<InputFile> look_at(const std::vector<fs::path>& files) {
  std::vector<InputFile> result;
  for (const fs::path& path : files) {
    auto file = status_of(path);
    if (!file) continue;  // shard says so
    file->fingerprint = fingerprint_of(*file);
    result.push_back(std::move(*file));
  }
  return result;
}

Record make_record(const Job& job, const std::string& tool, std::vector<InputFile> seen) {
  return {.tool = tool,
          .command_line = job.command_line(),
          .inputs = std::move(seen),
          .manifest = onnx_io::fingerprint(contents(job.output / onnx_io::kManifestFile))};
}

bool is_up_to_date(const Job& job, const std::string& tool, const std::optional<Record>& record) {
  return record && record->tool == tool && record->command_line == job.command_line() &&
         !record->inputs.empty() && std::ranges::all_of(record->inputs, is_unchanged) &&
         fs::exists(job.output / onnx_io::kManifestFile) &&
         onnx_io::fingerprint(contents(job.output / onnx_io::kManifestFile)) == record->manifest;
}

std::optional<Record> read_record(const fs::path& path) {
  const Json json = Json::parse(contents(path), nullptr, false);
  try {
    Record record{.tool = json.at("tool"),
                  .command_line = json.at("command_line"),
                  .inputs = {},
                  .manifest = json.at("manifest")};
    for (const Json& input : json.at("inputs")) {
      record.inputs.push_back({.path = input.at("path").get<std::string>(),
                               .bytes = input.at("bytes"),
                               .modified = input.at("modified"),
                               .fingerprint = input.at("fingerprint")});
    }
    return record;
  } catch (const Json::exception&) {  // none, or cut off
    return std::nullopt;
  }
}

void write_record(const fs::path& path, const Record& record) {
  Json inputs = Json::array();
  for (const InputFile& input : record.inputs) {
    inputs.push_back({{"path", input.path.string()},
                      {"bytes", input.bytes},
                      {"modified", input.modified},
                      {"fingerprint", input.fingerprint}});
  }
  const Json json = {{"tool", record.tool},
                     {"command_line", record.command_line},
                     {"inputs", std::move(inputs)},
                     {"manifest", record.manifest}};
  onnx_io::write_file(path, json_text(json) + "\n");
}

}  // namespace autosp::cli::batch

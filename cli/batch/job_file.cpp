// Job lists in YAML, and in JSON, which is YAML too:
//
//   defaults:                      settings of every job
//     sp: 4
//     dim: {seq: 128}              or [seq=128]
//   jobs:
//     - model: llama.onnx          a path or a pattern, or a list of them, seen from the file
//     - model: gpt2.onnx
//       sp: [2, 4]                 an option of one value: a job for each
//       name: small
#include <yaml-cpp/yaml.h>

#include <algorithm>

#include "base/error.h"
#include "batch/job.h"
#include "batch/shard_options.h"

namespace autosp::cli::batch {

namespace {

Error in_file(const std::string& origin, const std::string& message) {
  return Error("{}", message)
      .note(fmt::format("in {}", origin))
      .help("docs/commands.md shows a job file");
}

std::string scalar(const YAML::Node& node, const std::string& origin) {
  if (!node.IsScalar()) throw in_file(origin, "a value is neither text nor a number");
  return node.Scalar();
}

// A value, a list of values, or a map, which stands for NAME=VALUE.
std::vector<std::string> values_of(const YAML::Node& node, const std::string& origin) {
  std::vector<std::string> values;
  if (node.IsMap()) {
    for (const auto& entry : node) {
      values.push_back(scalar(entry.first, origin) + "=" + scalar(entry.second, origin));
    }
  } else if (node.IsSequence()) {
    for (const YAML::Node& entry : node) values.push_back(scalar(entry, origin));
  } else {
    values.push_back(scalar(node, origin));
  }
  if (values.empty()) throw in_file(origin, "a list of values is empty");
  return values;
}

Settings settings_of(const YAML::Node& node, const std::string& origin) {
  Settings settings;
  if (!node.IsDefined() || node.IsNull()) return settings;
  if (!node.IsMap()) throw in_file(origin, "settings are NAME: VALUE, one each line");
  for (const auto& entry : node) {
    const std::string key = scalar(entry.first, origin);
    if (key == "model" || key == "name") continue;
    settings[key] = values_of(entry.second, fmt::format("{}, '{}'", origin, key));
  }
  return settings;
}

JobRequest request_of(const YAML::Node& node, const Settings& defaults, const Settings& given,
                      const std::filesystem::path& folder, const std::string& origin) {
  JobRequest request{.settings = settings_of(node, origin), .origin = origin};
  if (!node.IsMap() || !node["model"]) throw in_file(origin, "a job has no 'model'");
  request.patterns = values_of(node["model"], origin);
  if (node["name"]) request.name = scalar(node["name"], origin);
  if (request.name.find('/') != std::string::npos || request.name.starts_with('.')) {
    throw in_file(origin, fmt::format("'{}' is no name of a folder", request.name));
  }
  request.settings.insert(defaults.begin(), defaults.end());
  for (const char* name : {"device", "deepspeed-config"}) {
    const auto found = request.settings.find(name);
    if (found == request.settings.end()) continue;
    for (std::string& file : found->second) {
      if (std::filesystem::is_regular_file(folder / file)) file = (folder / file).string();
    }
  }
  for (const auto& [name, values] : given) request.settings[name] = values;
  return request;
}

}  // namespace

std::vector<JobRequest> read_job_file(const std::filesystem::path& path, const Settings& given) {
  YAML::Node file;
  try {
    file = YAML::LoadFile(path.string());
  } catch (const YAML::BadFile&) {
    throw Error("cannot read the job file '{}'", path.string())
        .note("it does not exist, or may not be read")
        .help("give the path of a .yaml or .json file");
  } catch (const YAML::Exception& failure) {
    throw in_file(path.string(), failure.what());
  }
  const bool bare = file.IsSequence();
  if (!bare && !(file.IsMap() && file["jobs"] && file["jobs"].IsSequence())) {
    throw in_file(path.string(), "it has no list 'jobs'");
  }
  for (const auto& entry : bare ? YAML::Node() : file) {
    const std::string key = scalar(entry.first, path.string());
    if (key != "jobs" && key != "defaults") {
      throw in_file(path.string(), fmt::format("'{}' is neither 'defaults' nor 'jobs'", key));
    }
  }
  const YAML::Node jobs = bare ? file : file["jobs"];
  const Settings defaults =
      bare ? Settings() : settings_of(file["defaults"], path.string() + ", defaults");
  std::vector<JobRequest> requests;
  for (size_t k = 0; k < jobs.size(); ++k) {
    requests.push_back(request_of(jobs[k], defaults, given,
                                  std::filesystem::absolute(path).parent_path(),
                                  fmt::format("{}, job {}", path.filename().string(), k + 1)));
  }
  return requests;
}

}  // namespace autosp::cli::batch

// What `batch` converts: models times settings, each one run of `shard`.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace autosp::cli::batch {

struct Job {
  std::string name;              // of the result's folder, below the batch's own
  std::filesystem::path model;   // absolute
  std::filesystem::path output;  // absolute
  std::vector<std::string> options;

  // Of `shard`, after the program's name.
  std::vector<std::string> command_line() const;
};

// Values by long name of an option of `shard`, without dashes. An option that takes one value has
// several alternatives here, and a model has one job for each combination; a flag is "true" or
// "false".
using Settings = std::map<std::string, std::vector<std::string>>;

// One entry of a job list, before its patterns are matched.
struct JobRequest {
  std::vector<std::string> patterns;  // of model files
  Settings settings;
  std::string name;    // "": from the model's file and the alternatives
  std::string origin;  // for messages: "jobs.yaml, job 3"
};

// The models of all patterns, relative ones seen from `base`, times their settings. Throws Error
// for a pattern that nothing matches, an option that `shard` lacks or whose value it refuses, and
// two jobs with one result.
std::vector<Job> make_jobs(const std::vector<JobRequest>& requests,
                           const std::filesystem::path& base, const std::filesystem::path& folder);

// The requests of a YAML or JSON file. `given` are settings of the command line, which win.
std::vector<JobRequest> read_job_file(const std::filesystem::path& path, const Settings& given);

}  // namespace autosp::cli::batch

#include "batch/job.h"

#include <glob.h>

#include <algorithm>
#include <cctype>
#include <set>

#include "base/error.h"
#include "batch/shard_options.h"

namespace autosp::cli::batch {

namespace fs = std::filesystem;

std::vector<std::string> Job::command_line() const {
  std::vector<std::string> words = {"shard", model.string(), "--output", output.string()};
  words.insert(words.end(), options.begin(), options.end());
  return words;
}

namespace {

struct Match {
  fs::path model;
  const JobRequest* request;
};

std::string escaped(const fs::path& folder) {
  std::string result;
  for (const char letter : folder.string()) {
    if (std::string_view("*?[]{}\\~").find(letter) != std::string_view::npos) result += '\\';
    result += letter;
  }
  return result;
}

std::set<fs::path> glob_paths(const std::string& pattern) {
  glob_t found{};
  std::set<fs::path> result;
  if (::glob(pattern.c_str(), GLOB_TILDE_CHECK | GLOB_BRACE, nullptr, &found) == 0) {
    result.insert(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  }
  ::globfree(&found);
  return result;
}

// What this program has written: its graphs are no models to be split.
bool holds_results(const fs::path& folder) {
  std::error_code ignored;
  return fs::exists(folder / ".autosp-batch", ignored) ||
         fs::exists(folder / "manifest.json", ignored);
}

// This folder and all below it, but for hidden ones, results, and links, which may lead in circles.
std::vector<fs::path> folders_from(const fs::path& folder) {
  std::vector<fs::path> result = {folder};
  const auto options = fs::directory_options::skip_permission_denied;
  for (auto entry = fs::recursive_directory_iterator(folder, options); entry != end(entry);
       ++entry) {
    std::error_code ignored;  // a link that leads to itself is no folder
    if (!entry->is_directory(ignored)) continue;
    if (entry->path().filename().string().starts_with('.') || holds_results(entry->path())) {
      entry.disable_recursion_pending();
    } else if (!entry->is_symlink()) {
      result.push_back(entry->path());
    }
  }
  return result;
}

// What a shell makes of the pattern. "**" as a part of the path is any number of folders, which
// glob() does not know.
std::set<fs::path> expanded(const std::string& pattern) {
  constexpr std::string_view kAnyFolders = "/**/";
  const size_t at = pattern.find(kAnyFolders);
  if (at == std::string::npos) {
    if (pattern.ends_with("/**")) return expanded(pattern + "/*");
    return glob_paths(pattern);
  }
  const std::string rest = pattern.substr(at + kAnyFolders.size());
  std::set<fs::path> result;
  for (const fs::path& root : glob_paths(pattern.substr(0, at) + "/")) {
    for (const fs::path& folder : folders_from(root)) {
      for (const fs::path& path : expanded(escaped(folder) + "/" + rest)) {
        if (!fs::is_directory(path)) result.insert(path.lexically_normal());
      }
    }
  }
  return result;
}

// A file of that name, or those that match; `base` is a folder and no pattern.
std::vector<fs::path> matches_of(const fs::path& base, const std::string& text,
                                 const std::string& origin) {
  if (fs::is_regular_file(base / text)) return {base / text};
  const bool absolute = fs::path(text).is_absolute() || text.starts_with('~');
  const std::string pattern = absolute ? text : escaped(base) + "/" + text;
  const std::set<fs::path> result = expanded(pattern);
  if (!result.empty()) return {result.begin(), result.end()};
  throw Error("no file matches '{}'", absolute ? text : (base / text).string())
      .note(fmt::format("in {}", origin))
      .help(
          "give the path of an .onnx file, or a pattern such as 'models/*.onnx' or "
          "'models/**/*.onnx' in quotes");
}

std::vector<Match> find_models(const std::vector<JobRequest>& requests, const fs::path& base) {
  std::vector<Match> result;
  for (const JobRequest& request : requests) {
    for (const std::string& pattern : request.patterns) {
      for (const fs::path& model : matches_of(base, pattern, request.origin)) {
        // "link/.." is not this folder.
        const fs::path folder = fs::canonical(fs::absolute(model).parent_path());
        result.push_back({folder / model.filename(), &request});
      }
    }
  }
  return result;
}

// The folder that all models lie below.
fs::path common_folder(const std::vector<Match>& matches) {
  fs::path common = matches[0].model.parent_path();
  for (const Match& match : matches) {
    while (!common.empty() && common != common.root_path() &&
           *match.model.lexically_relative(common).begin() == "..") {
      common = common.parent_path();
    }
  }
  return common;
}

// "text/llama" is "text-llama": folders of results lie side by side.
std::string flat_name(const fs::path& model, const fs::path& common) {
  fs::path relative = model.lexically_relative(common);
  if (relative.extension() == ".onnx") relative.replace_extension();
  std::string name = relative.string();
  std::ranges::replace(name, '/', '-');
  return name;
}

// Every combination of one value for each option that takes one.
std::vector<Settings> combinations(const Settings& settings) {
  std::vector<Settings> result = {{}};
  for (const auto& [name, values] : settings) {
    const ShardOption* option = find_shard_option(name);
    if (option != nullptr && option->kind == OptionKind::kList) {
      for (Settings& one : result) one[name] = values;
      continue;
    }
    std::vector<Settings> next;
    for (const Settings& before : result) {
      for (const std::string& value : values) {
        next.push_back(before);
        next.back()[name] = {value};
      }
    }
    result = std::move(next);
  }
  return result;
}

// What tells a combination from the others of its model; sp always does.
std::string suffix(const Settings& one, const Settings& all) {
  std::string result;
  const auto add = [&](const std::string& name) {
    std::string value = one.at(name)[0];
    for (char& letter : value) {
      if (letter == '/' || letter == '=' || letter == ',') letter = '-';
    }
    result += "-" + name + (name == "sp" || name == "dp" ? "" : "-") + value;
  };
  if (one.contains("sp")) add("sp");
  for (const auto& [name, values] : one) {
    if (name != "sp" && values.size() == 1 && all.at(name).size() > 1) add(name);
  }
  return result;
}

// Of a flag, in the words that YAML has for it.
bool is_set(const std::string& name, std::string value, const std::string& origin) {
  std::ranges::transform(value, value.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const char* word : {"true", "yes", "on"}) {
    if (value == word) return true;
  }
  for (const char* word : {"false", "no", "off"}) {
    if (value == word) return false;
  }
  throw Error("'{}' is set or not, and '{}' says neither", name, value)
      .note(fmt::format("in {}", origin))
      .help("write true or false");
}

std::vector<std::string> words_of(const Settings& settings, const std::string& origin) {
  std::vector<std::string> words;
  for (const auto& [name, values] : settings) {
    const ShardOption* option = find_shard_option(name);
    if (option == nullptr) {
      std::vector<std::string> names;
      for (const ShardOption& known : shard_options()) names.push_back(known.name);
      const std::string near = nearest_name(name, names);
      throw Error("'{}' is no option of shard that a batch hands on", name)
          .note(fmt::format("in {}", origin))
          .help(near.empty() ? "'autosp-onnx batch --help' lists them"
                             : fmt::format("did you mean '{}'?", near));
    }
    if (option->kind == OptionKind::kFlag) {
      if (is_set(name, values[0], origin)) words.push_back("--" + name);
      continue;
    }
    for (const std::string& value : values) words.push_back(fmt::format("--{}={}", name, value));
  }
  return words;
}

void check_distinct(const std::vector<Job>& jobs) {
  std::map<std::string, const Job*> by_name;
  for (const Job& job : jobs) {
    const auto [entry, is_new] = by_name.emplace(job.name, &job);
    if (is_new) continue;
    throw Error("two jobs would write '{}'", job.output.string())
        .note(fmt::format("one converts '{}', the other '{}'", entry->second->model.string(),
                          job.model.string()))
        .help("give each a 'name' of its own, or convert each model once");
  }
}

}  // namespace

std::vector<Job> make_jobs(const std::vector<JobRequest>& requests, const fs::path& base,
                           const fs::path& folder) {
  const std::vector<Match> matches = find_models(requests, base);
  if (matches.empty()) {
    throw Error("there is no model to convert")
        .note("neither a pattern nor a job file names one")
        .help("for example: autosp-onnx batch 'models/*.onnx' --sp 4 -o out");
  }
  const fs::path common = common_folder(matches);
  std::vector<Job> jobs;
  for (const Match& match : matches) {
    const JobRequest& request = *match.request;
    const std::vector<Settings> all = combinations(request.settings);
    for (const Settings& one : all) {
      const std::string of_settings = suffix(one, request.settings);
      Job job{.name = flat_name(match.model, common) + of_settings, .model = match.model};
      if (!request.name.empty()) job.name = request.name + (all.size() > 1 ? of_settings : "");
      job.options = words_of(one, request.origin);
      job.output = fs::absolute(folder / job.name).lexically_normal();
      check_arguments(job.command_line(), request.origin);
      jobs.push_back(std::move(job));
    }
  }
  check_distinct(jobs);
  return jobs;
}

}  // namespace autosp::cli::batch

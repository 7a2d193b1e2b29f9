// autosp-onnx batch MODELS... --sp N -o DIR: converts many models, again only what has changed.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "batch/job.h"
#include "batch/process_pool.h"
#include "batch/progress.h"
#include "batch/record.h"
#include "batch/shard_options.h"
#include "command.h"
#include "depfile.h"
#include "interruption.h"
#include "json_text.h"
#include "model_arguments.h"
#include "onnx/atomic_file.h"
#include "onnx/manifest.h"
#include "output_file.h"

namespace autosp::cli {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kFooter = R"(
Each result is a folder DIR/NAME, as shard writes it. What is there already and was made from the same
model, options and program is left alone; a batch that was stopped goes on where it was.
The options of shard hold for every model; one that takes a single value may be given several times,
and every model is converted with each. Job files: docs/commands.md.

Examples:
  autosp-onnx batch 'models/*.onnx' --dim seq=4096 --sp 4 -o out
  autosp-onnx batch llama.onnx --sp 2 --sp 4 --recompute sac -o out     out/llama-sp2, out/llama-sp4
  autosp-onnx batch jobs.yaml -o out --report report.json

Exit codes: 0 all there, 1 some failed, 2 nothing was begun.)";

constexpr const char* kStateFolder = ".autosp-batch";

struct Arguments {
  std::vector<std::string> sources;  // models, patterns, job files
  fs::path folder;
  fs::path report;
  fs::path depfile;
  int64_t jobs = 0;  // at once; 0: as many as cores
  bool quiet = false;
  std::map<std::string, std::vector<std::string>> values;  // by option of shard
  std::map<std::string, bool> flags;
};

enum class Status : uint8_t { kNotRun, kConverted, kUpToDate, kFailed };

std::string_view name_of(Status status) {
  switch (status) {
    case Status::kNotRun:
      return "not-run";
    case Status::kConverted:
      return "converted";
    case Status::kUpToDate:
      return "up-to-date";
    case Status::kFailed:
      return "failed";
  }
  return "";
}

struct Outcome {
  Status status = Status::kNotRun;
  double seconds = 0;
  int exit_code = 0;
  std::string error;  // what shard printed, where it failed
};

batch::Settings settings_of(const Arguments& arguments) {
  batch::Settings settings;
  for (const auto& [name, values] : arguments.values) {
    if (!values.empty()) settings[name] = values;
  }
  for (const auto& [name, given] : arguments.flags) {
    if (given) settings[name] = {"true"};
  }
  return settings;
}

bool is_job_file(const std::string& source) {
  const std::string extension = fs::path(source).extension().string();
  return extension == ".yaml" || extension == ".yml" || extension == ".json";
}

std::vector<batch::Job> jobs_of(const Arguments& arguments) {
  const batch::Settings given = settings_of(arguments);
  std::vector<batch::JobRequest> requests;
  fs::path base = fs::current_path();
  for (const std::string& source : arguments.sources) {
    if (!is_job_file(source)) {
      requests.push_back({.patterns = {source}, .settings = given, .origin = "the command line"});
      continue;
    }
    if (arguments.sources.size() > 1) {
      throw Error("'{}' is a job file, and there is more", source)
          .note("paths in a job file are seen from its folder, others from here")
          .help("give one job file, or models");
    }
    base = fs::absolute(source).parent_path();
    requests = batch::read_job_file(source, given);
  }
  return make_jobs(requests, base, arguments.folder);
}

// Keeps two batches out of one folder.
class FolderLock {
 public:
  explicit FolderLock(const fs::path& state) {
    file_ = ::open((state / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file_ < 0) {
      throw Error("'{}' cannot be written: {}", (state / "lock").string(), std::strerror(errno))
          .note("a batch keeps what it knows of its results there")
          .help("give a folder that you may write to with -o");
    }
    if (::flock(file_, LOCK_EX | LOCK_NB) == 0) return;
    ::close(file_);
    throw Error("another batch is at work in '{}'", state.parent_path().string())
        .note(fmt::format("it holds '{}'", (state / "lock").string()))
        .help("wait until it has ended, or give another folder with -o");
  }
  ~FolderLock() { ::close(file_); }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int file_ = -1;
};

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// Jobs on their way through the pool.
class Batch {
 public:
  Batch(std::vector<batch::Job> jobs, const fs::path& folder, size_t at_once, bool quiet)
      : jobs_(std::move(jobs)),
        outcomes_(jobs_.size()),
        inputs_(jobs_.size()),
        begun_(jobs_.size()),
        state_(fs::absolute(folder) / kStateFolder),
        pool_(at_once),
        progress_(jobs_.size(), quiet) {}

  void run() {
    for (size_t k = 0; k < jobs_.size(); ++k) {
      HeldSignals::check();
      if (prepare(k)) waiting_.push_back(k);
    }
    while (!waiting_.empty() || !pool_.is_idle()) {
      while (!waiting_.empty() && pool_.has_room()) {
        HeldSignals::check();
        start(waiting_.front());
        waiting_.pop_front();
      }
      finish(pool_.wait());
    }
  }

  void stop() { pool_.stop(); }

  const std::vector<batch::Job>& jobs() const { return jobs_; }
  const std::vector<Outcome>& outcomes() const { return outcomes_; }
  size_t count(Status status) const {
    return static_cast<size_t>(std::ranges::count(outcomes_, status, &Outcome::status));
  }
  std::vector<fs::path> inputs(size_t k) const {
    std::vector<fs::path> paths;
    for (const batch::FileState& file : inputs_[k]) paths.push_back(file.path);
    return paths;
  }

 private:
  // False when there is nothing to do for the job, or nothing that can be done.
  bool prepare(size_t k) {
    const batch::Job& job = jobs_[k];
    try {
      const auto record = batch::read_record(record_of(job));
      if (is_up_to_date(job, tool_, record)) {
        inputs_[k] = record->inputs;
        outcomes_[k].status = Status::kUpToDate;
        progress_.ended(job.name, "up to date", "", false);
        return false;
      }
      inputs_[k] = batch::look_at(batch::input_files(job));
      return true;
    } catch (const Error& error) {
      fail(k, kUserError, error.what());
      return false;
    }
  }

  void start(size_t k) {
    begun_[k] = Clock::now();
    fs::remove(record_of(jobs_[k]));
    pool_.start(k, jobs_[k].command_line(), log_of(jobs_[k]));
  }

  void finish(const batch::Finished& finished) {
    const size_t k = finished.key;
    const batch::Job& job = jobs_[k];
    Outcome& outcome = outcomes_[k];
    outcome.seconds = std::chrono::duration<double>(Clock::now() - begun_[k]).count();
    if (finished.code != 0) return fail(k, finished.code, read(log_of(job)));
    write_record(record_of(job), make_record(job, tool_, inputs_[k]));
    outcome.status = Status::kConverted;
    progress_.ended(job.name, "converted", fmt::format("{:.1f} s", outcome.seconds), false);
  }

  void fail(size_t k, int code, std::string error) {
    if (error.empty()) error = fmt::format("error: shard ended with exit code {}", code);
    Outcome& outcome = outcomes_[k];
    outcome.status = Status::kFailed;
    outcome.exit_code = code;
    outcome.error = std::move(error);
    progress_.ended(jobs_[k].name, "failed", first_line(outcome.error), true);
  }

  fs::path record_of(const batch::Job& job) const { return state_ / (job.name + ".json"); }
  fs::path log_of(const batch::Job& job) const { return state_ / (job.name + ".log"); }

  static std::string read(const fs::path& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }

  using Clock = std::chrono::steady_clock;

  std::vector<batch::Job> jobs_;
  std::vector<Outcome> outcomes_;
  std::vector<std::vector<batch::FileState>> inputs_;
  std::vector<Clock::time_point> begun_;
  fs::path state_;
  std::string tool_ = batch::tool_fingerprint();
  std::deque<size_t> waiting_;
  batch::ProcessPool pool_;
  batch::Progress progress_;
};

Json to_json(const Batch& batch) {
  Json jobs = Json::array();
  for (size_t k = 0; k < batch.jobs().size(); ++k) {
    const batch::Job& job = batch.jobs()[k];
    const Outcome& outcome = batch.outcomes()[k];
    Json row = {{"name", job.name},
                {"model", job.model.string()},
                {"output", job.output.string()},
                {"options", job.options},
                {"status", name_of(outcome.status)},
                {"seconds", outcome.seconds}};
    if (outcome.status == Status::kFailed) {
      row["exit_code"] = outcome.exit_code;
      row["error"] = outcome.error;
    }
    jobs.push_back(std::move(row));
  }
  Json summary;
  for (const Status status :
       {Status::kConverted, Status::kUpToDate, Status::kFailed, Status::kNotRun}) {
    summary[std::string(name_of(status))] = batch.count(status);
  }
  return {{"tool", "autosp-onnx"},
          {"version", AUTOSP_VERSION},
          {"jobs", std::move(jobs)},
          {"summary", std::move(summary)}};
}

std::string depfile_text(const Batch& batch) {
  std::string text;
  for (size_t k = 0; k < batch.jobs().size(); ++k) {
    if (batch.inputs(k).empty()) continue;
    text += depfile_rule(batch.jobs()[k].output / onnx_io::kManifestFile, batch.inputs(k));
  }
  return text;
}

void write_results(const Arguments& arguments, const Batch& batch) {
  const auto write = [](const fs::path& path, const std::string& text) {
    if (path.empty()) return;
    write_output_file(path, [&](const fs::path& to) { onnx_io::write_file(to, text); });
  };
  write(arguments.report, json_text(to_json(batch)) + "\n");
  write(arguments.depfile, depfile_text(batch));
}

int run(const Arguments& arguments) {
  std::vector<batch::Job> jobs = jobs_of(arguments);
  check_output_files({{.option = "--report", .path = arguments.report},
                      {.option = "--depfile", .path = arguments.depfile}},
                     {{.option = "batch", .path = arguments.sources[0]}});
  const fs::path state = arguments.folder / kStateFolder;
  fs::create_directories(state);
  const FolderLock lock(state);
  const auto cores = std::max(1U, std::thread::hardware_concurrency());
  const auto at_once =
      arguments.jobs > 0 ? static_cast<size_t>(arguments.jobs) : static_cast<size_t>(cores);

  const HeldSignals signals;
  Batch batch(std::move(jobs), arguments.folder, at_once, arguments.quiet);
  int interrupted = 0;
  try {
    batch.run();
  } catch (const Interruption& interruption) {
    batch.stop();
    interrupted = interruption.exit_code();
  }
  write_results(arguments, batch);
  fmt::print("{} converted, {} up to date, {} failed", batch.count(Status::kConverted),
             batch.count(Status::kUpToDate), batch.count(Status::kFailed));
  if (interrupted != 0) {
    fmt::print(", {} not run: interrupted, the same command goes on", batch.count(Status::kNotRun));
  }
  fmt::print("\n");
  if (interrupted != 0) return interrupted;
  return batch.count(Status::kFailed) == 0 ? 0 : kMismatch;
}

// Every option of shard, with what it says of itself.
void add_shard_options(CLI::App& command, Arguments& arguments) {
  for (const batch::ShardOption& option : batch::shard_options()) {
    const std::string name = "--" + option.name;
    CLI::Option* added = nullptr;
    if (option.kind == batch::OptionKind::kFlag) {
      added = command.add_flag(name, arguments.flags[option.name], option.help);
    } else {
      added = command.add_option(name, arguments.values[option.name], option.help)
                  ->allow_extra_args(false)
                  ->type_name(option.type);
    }
    added->group("Options of shard");
  }
}

}  // namespace

void add_batch(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("batch", "Splits many models, anew only what has changed");
  command->footer(kFooter);
  command
      ->add_option("models", arguments->sources,
                   "Models, patterns of paths in quotes, or one job file (.yaml, .json)")
      ->required()
      ->type_name("MODEL");
  command->add_option("-o,--output", arguments->folder, "The folder of all results")
      ->required()
      ->type_name("DIR");
  command->add_option("--report", arguments->report, "Writes what became of every job")
      ->type_name("JSON");
  command
      ->add_option("--depfile", arguments->depfile,
                   "Writes which files every result depends on, as make reads it")
      ->type_name("FILE");
  command
      ->add_option("-j,--jobs", arguments->jobs,
                   "How many run at once; by default as many as cores")
      ->check(at_most(4096))
      ->type_name("N");
  command->add_flag("-q,--quiet", arguments->quiet, "Prints failures and the summary only");
  add_shard_options(*command, *arguments);
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace autosp::cli

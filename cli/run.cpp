// autosp-onnx run OUT --feed inputs.npz: the ranks of a sharded model, as threads or under MPI.
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "base/error.h"
#include "command.h"
#include "executor/openblas.h"
#include "executor/run.h"
#include "executor/trace.h"
#include "feed_source.h"
#include "feeds.h"
#include "json_text.h"
#include "model_arguments.h"
#include "mpi_launch.h"
#include "output_file.h"
#include "ranks.h"
#include "run_device.h"
#include "training/shards.h"

namespace autosp::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMostThreads = 1024;  // of a rank: more than any machine has cores for one

constexpr const char* kFooter = R"(
inputs.npz holds every graph input, whole: each rank takes its slice, as manifest.json says; ranks may also be
given files of their own (--feed-rank). Results
are the loss and the gradients, complete on every rank; --output writes rank 0's. 'exposed' is the time of a
step in which collectives kept a rank from computing. Of the memory for
intermediate values, 'planned' is what was set aside, 'measured' what came into use, with the buffers
of messages; 'resident' is the most that the rank's whole process took, which threads share; without
what processes read of each other's memory.

Examples:
  autosp-onnx run out --feed inputs.npz --output results.npz
  autosp-onnx run out --np 4 --transport mpi --feed inputs.npz          starts mpirun by itself
  mpirun -np 4 autosp-onnx run out --feed inputs.npz --trace trace.json
                                      (open trace.json in chrome://tracing or ui.perfetto.dev))";

struct Arguments {
  std::filesystem::path folder;
  int64_t np = 0;
  std::string transport;
  std::filesystem::path output;
  std::filesystem::path trace;
  FeedFiles feed;
  RunDevice device;
  double timeout = 60;
  int threads_per_rank = 0;
  int repeat = 1;
  bool overlap = false;
  SlowLinkArguments link;
  bool json = false;
};

bool is_cpu(const Arguments& arguments) { return arguments.device.name == "cpu"; }

// What only the CPU's executor does.
void check_device(const Arguments& arguments) {
  const char* given = arguments.overlap            ? "--overlap"
                      : arguments.link.latency > 0 ? "--link-latency"
                      : arguments.link.rate > 0    ? "--link-rate"
                                                   : nullptr;
  if (is_cpu(arguments) || given == nullptr) return;
  throw Error("{} is given, which is of --device cpu", given)
      .note("on a device, collectives always run beside computations, and nothing is pretended")
      .help("leave it out");
}

// At the length of what `rank` is fed.
onnx_io::Manifest read_manifest(const Arguments& arguments, int64_t started, int64_t rank = 0) {
  const onnx_io::Manifest manifest = onnx_io::read_manifest(arguments.folder);
  const auto ranks = static_cast<int64_t>(manifest.ranks.size());
  if (started != 0 && started != ranks) {
    throw Error("'{}' is sharded over {} ranks, but {} are to run", arguments.folder.string(),
                ranks, started)
        .note("every rank runs a graph of its own")
        .help(fmt::format("run it with {} ranks, or shard the model again", ranks));
  }
  return at_length_of(manifest, arguments.feed, rank);
}

FeedFiles feed_files(const Arguments& arguments) {
  FeedFiles files = arguments.feed;
  files.folder = arguments.folder;
  return files;
}

void check_outputs(const Arguments& arguments, const onnx_io::Manifest& manifest) {
  check_output_files({{"--output", arguments.output}, {"--trace", arguments.trace}},
                     files_of(arguments.feed, manifest), arguments.folder, manifest);
}

void write_results(const Arguments& arguments, const executor::Arrays& results) {
  if (arguments.output.empty()) return;
  write_output_file(arguments.output,
                    [&](const std::filesystem::path& path) { executor::write_npz(path, results); });
}

void write_events(const Arguments& arguments, const std::vector<executor::TraceEvent>& events) {
  if (arguments.trace.empty()) return;
  write_output_file(arguments.trace, [&](const std::filesystem::path& path) {
    executor::write_trace(path, events);
  });
}

executor::RunOptions run_options(const Arguments& arguments) {
  executor::RunOptions options;
  check_device(arguments);
  options.backend = open_device(arguments.device);
  options.data_folder = arguments.folder;
  options.timeout = arguments.timeout;
  options.threads_per_rank = arguments.threads_per_rank;
  options.repeat = arguments.repeat;
  options.compile.fuse = arguments.device.fuse;
  options.compile.overlap = arguments.overlap;
  options.link = slow_link(arguments.link);
  options.trace = !arguments.trace.empty();
  return options;
}

// `resident_peak` is of the rank's process, which threads share.
Json rank_report(const Arguments& arguments, const executor::RankResult& rank,
                 int64_t resident_peak, const onnx_io::Manifest& manifest) {
  int64_t bytes = 0;
  double waiting = 0;
  for (const executor::CollectiveRecord& record : rank.collectives) {
    bytes += record.bytes_sent;
    waiting += record.seconds;
  }
  Json report{{"rank", rank.rank},
              {"seconds", rank.seconds},
              {"collectives", rank.collectives.size()},
              {"bytes_sent", bytes},
              {"planned_peak_bytes", rank.planned.arena},
              {"measured_peak_bytes", rank.measured_peak},
              {"resident_peak_bytes", resident_peak}};
  if (is_cpu(arguments)) {  // devices do not measure it
    report["collective_seconds"] = waiting;
    report["exposed_seconds"] = rank.exposed_seconds;
  }
  for (const onnx_io::ManifestOutput& output : manifest.outputs) {
    const auto found = rank.outputs.find(output.name);
    if (output.role == onnx_io::OutputRole::kLoss && found != rank.outputs.end() &&
        found->second.num_elements() == 1) {
      report["loss"] = found->second.value_as_double(0);
    }
  }
  return report;
}

// JSON has no NaN and no infinity: they arrive as null.
std::string loss_text(const Json& rank) {
  if (!rank.contains("loss")) return "";
  return rank["loss"].is_number() ? fmt::format("{:.7g}", rank["loss"].get<double>())
                                  : "not finite";
}

std::string exposed_text(const Json& rank) {
  return rank.contains("exposed_seconds")
             ? fmt::format("{:.3f}", rank["exposed_seconds"].get<double>())
             : "";
}

void print_report(const Json& ranks, const Arguments& arguments, const std::string& transport) {
  if (arguments.json) {
    Json report{{"folder", arguments.folder.string()}, {"transport", transport}, {"ranks", ranks}};
    if (!arguments.output.empty()) report["output"] = arguments.output.string();
    fmt::print("{}\n", json_text(report));
    return;
  }
  fmt::print("{} ({})\n", count_of_ranks(ranks.size()), transport);
  fmt::print("{:>4} {:>14} {:>9} {:>9} {:>12} {:>12} {:>12} {:>12} {:>12}\n", "rank", "loss",
             "seconds", "exposed", "collectives", "sent", "planned", "measured", "resident");
  for (const Json& rank : ranks) {
    fmt::print("{:>4} {:>14} {:>9.3f} {:>9} {:>12} {:>12} {:>12} {:>12} {:>12}\n",
               rank["rank"].get<int>(), loss_text(rank), rank["seconds"].get<double>(),
               exposed_text(rank), rank["collectives"].get<int64_t>(),
               format_bytes(rank["bytes_sent"].get<double>()),
               format_bytes(rank["planned_peak_bytes"].get<double>()),
               format_bytes(rank["measured_peak_bytes"].get<double>()),
               format_bytes(rank["resident_peak_bytes"].get<double>()));
  }
  for (const std::filesystem::path& path : {arguments.output, arguments.trace}) {
    if (!path.empty()) fmt::print("wrote {}\n", path.string());
  }
}

int run_threads(const Arguments& arguments) {
  const executor::RunOptions options = run_options(arguments);
  const onnx_io::Manifest manifest = read_manifest(arguments, arguments.np);
  FeedSource source(manifest, feed_files(arguments));
  check_outputs(arguments, manifest);
  std::vector<executor::Arrays> feeds;
  std::vector<FeedDigest> digests;
  for (const onnx_io::ManifestRank& rank : manifest.ranks) {
    feeds.push_back(source.of_rank(rank.rank));
    digests.push_back(source.digest());
  }
  if (source.by_rank()) check_one_batch(manifest, digests);
  const executor::RunResult result = run_ranks(arguments.folder, manifest, feeds, options);
  write_results(arguments, result.ranks.front().outputs);
  write_events(arguments, result.events);
  Json ranks = Json::array();
  for (const executor::RankResult& rank : result.ranks) {
    ranks.push_back(rank_report(arguments, rank, result.resident_peak, manifest));
  }
  print_notices(result.ranks);
  print_report(ranks, arguments, "threads");
  return 0;
}

// --- Under MPI.

Json to_json(const executor::TraceEvent& event) {
  return Json{event.name,     event.category, event.rank,  event.start,
              event.duration, event.bytes,    event.beside};
}

executor::TraceEvent to_event(const Json& json) {
  return {.name = json[0],
          .category = json[1],
          .rank = json[2],
          .start = json[3],
          .duration = json[4],
          .bytes = json[5],
          .beside = json[6]};
}

// Rank 0 compares; what it throws ends every rank.
void agree_on_batch(const executor::MpiSession& session, const onnx_io::Manifest& manifest,
                    const FeedDigest& own) {
  const auto texts = session.gather(to_text(own));
  if (session.rank() != 0) return;
  std::vector<FeedDigest> digests;
  for (const std::string& text : texts) digests.push_back(parse_digest(text));
  check_one_batch(manifest, digests);
}

int run_rank(executor::MpiSession& session, const Arguments& arguments) {
  onnx_io::Manifest manifest;
  executor::Arrays feeds;
  FeedDigest digest;
  executor::RunOptions options;
  std::shared_ptr<const ir::Graph> graph;
  std::optional<Failure> problem;
  try {
    refuse_threads_under_mpirun(arguments.transport, session);
    options = run_options(arguments);
    manifest = read_manifest(arguments, session.size(), session.rank());
    FeedSource source(manifest, feed_files(arguments));
    feeds = source.of_rank(session.rank());
    digest = source.digest();
    if (session.rank() == 0) check_outputs(arguments, manifest);
    graph = load_rank(arguments.folder, manifest, session.rank());
  } catch (...) {
    problem = current_failure();
  }
  agree_to_start(session, problem);
  if (!arguments.feed.by_rank.empty()) agree_on_batch(session, manifest, digest);
  executor::RunResult result = executor::run_mpi_rank(session, graph, feeds, options);
  executor::RankResult& own = result.ranks.front();
  name_gradients(manifest, own.outputs, session.communicator(arguments.timeout));
  if (session.rank() == 0) write_results(arguments, own.outputs);
  Json message{{"report", rank_report(arguments, own, result.resident_peak, manifest)},
               {"notices", own.notices},
               {"events", Json::array()}};
  for (const executor::TraceEvent& event : result.events)
    message["events"].push_back(to_json(event));
  const auto messages = session.gather(json_text(message, -1));
  if (session.rank() != 0) return 0;
  Json ranks = Json::array();
  std::set<std::string> notices;
  std::vector<executor::TraceEvent> events;
  for (const std::string& text : messages) {
    const Json parsed = Json::parse(text);
    ranks.push_back(parsed["report"]);
    notices.insert(parsed["notices"].begin(), parsed["notices"].end());
    for (const Json& event : parsed["events"]) events.push_back(to_event(event));
  }
  write_events(arguments, events);
  print_notices(notices);
  print_report(ranks, arguments, "mpi");
  return 0;
}

// Starts this program again under mpirun, once per rank.
[[noreturn]] void start_processes(const Arguments& arguments) {
  check_device(arguments);
  open_device(arguments.device);  // one message here is clearer than mpirun's
  const onnx_io::Manifest manifest = read_manifest(arguments, arguments.np);
  static_cast<void>(FeedSource(manifest, feed_files(arguments)));  // likewise
  std::vector<std::string> words = {"run",
                                    arguments.folder.string(),
                                    "--transport",
                                    "mpi",
                                    "--timeout",
                                    fmt::format("{}", arguments.timeout),
                                    "--threads-per-rank",
                                    std::to_string(arguments.threads_per_rank),
                                    "--repeat",
                                    std::to_string(arguments.repeat)};
  const auto pass_on = [&](const char* option, const std::filesystem::path& path) {
    if (path.empty()) return;
    words.insert(words.end(), {option, path.string()});
  };
  pass_on("--feed", arguments.feed.whole);
  pass_on("--feed-rank", arguments.feed.by_rank);
  pass_on("--output", arguments.output);
  pass_on("--trace", arguments.trace);
  if (arguments.feed.step) {
    words.insert(words.end(), {"--step", std::to_string(*arguments.feed.step)});
  }
  std::ranges::copy(words_of(arguments.device), std::back_inserter(words));
  if (arguments.json) words.emplace_back("--json");
  if (arguments.overlap) words.emplace_back("--overlap");
  add_words(arguments.link, words);
  start_mpirun(static_cast<int64_t>(manifest.ranks.size()), words);
}

int run(const Arguments& arguments) {
  executor::restart_with_fast_openblas();
  const int started = executor::mpi_processes();
  const bool mpi = arguments.transport.empty() ? started > 0 : arguments.transport == "mpi";
  if (started > 1 || (mpi && started > 0)) {
    return run_as_rank([&](executor::MpiSession& session) { return run_rank(session, arguments); });
  }
  if (mpi) start_processes(arguments);
  return run_threads(arguments);
}

}  // namespace

void add_run(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      app.add_subcommand("run", "Runs the ranks of a sharded model on this machine");
  command->footer(kFooter);
  command->add_option("folder", arguments->folder, "What 'shard' wrote")
      ->required()
      ->type_name("OUT");
  add_launch_options(*command, arguments->np, arguments->transport);
  add_run_device_options(*command, arguments->device);
  command
      ->add_option("--feed", arguments->feed.whole,
                   "The graph inputs, whole; with --feed-rank, those that its files lack")
      ->type_name("NPZ");
  command
      ->add_option(
          "--feed-rank", arguments->feed.by_rank,
          "A file for each rank, as 'feed' writes them; {rank} stands for its number, as in "
          "'fed/rank_{rank}.npz'. Ranks of one sequence must be fed from one batch")
      ->type_name("NPZ");
  add_step_option(*command, arguments->feed.step);
  command->add_option("--output", arguments->output, "Where to write the graph outputs")
      ->type_name("NPZ");
  command
      ->add_option("--trace", arguments->trace,
                   "Where to write a time line of every rank's last step")
      ->type_name("JSON");
  add_timeout_option(*command, arguments->timeout);
  command
      ->add_option("--threads-per-rank", arguments->threads_per_rank,
                   "Threads of a rank's matrix products, attention and fused elementwise "
                   "operators; 0: the cores divided by the ranks")
      ->check(at_most(kMostThreads))
      ->type_name("N")
      ->capture_default_str();
  command
      ->add_option("--repeat", arguments->repeat,
                   "Runs the step this often and reports the median time")
      ->check(at_least_one())
      ->type_name("N")
      ->capture_default_str();
  add_overlap_options(*command, arguments->overlap, arguments->link);
  command->add_flag("--json", arguments->json, "Prints the report as JSON");
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace autosp::cli

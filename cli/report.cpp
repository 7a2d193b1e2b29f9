// autosp-onnx report OUT: one page about a sharded model, from a run of it.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>

#include "base/error.h"
#include "command.h"
#include "executor/openblas.h"
#include "executor/part_file.h"
#include "feeds.h"
#include "model_arguments.h"
#include "output_file.h"
#include "prediction.h"
#include "ranks.h"
#include "report/collect.h"
#include "report/html.h"
#include "report/json.h"

namespace autosp::cli {

namespace {

constexpr int64_t kMostThreads = 1024;

constexpr const char* kFooter = R"(
Runs the ranks as threads of this process, a few steps of which the last is told, and writes a page
that needs nothing but itself: memory over the step, a time line of every rank, achieved rates, what
is split in a layer, and with --model the differences from the whole model. Where OUT is a file, it
is a report that --json wrote, and nothing runs.

Examples:
  autosp-onnx report out --feed inputs.npz -o report.html
  autosp-onnx report out --feed inputs.npz --model model.onnx --json report.json
  autosp-onnx report --compare report.json other_out -o comparison.html
Exit code 1 means that something differs from the whole model or is not finite; the page says what.)";

struct Arguments {
  std::filesystem::path source;
  std::vector<std::filesystem::path> compare;
  std::filesystem::path output = "report.html";
  std::filesystem::path json;
  FeedArguments inputs;
  std::filesystem::path model;
  std::string device = "cpu";
  double timeout = 60;
  int threads_per_rank = 0;
  int repeat = 3;
};

// A folder that is to be run, or a report of an earlier run.
struct Source {
  std::filesystem::path path;
  std::optional<onnx_io::Manifest> manifest;  // of a folder
  ReportData report;                          // of a file
};

Source open_source(const std::filesystem::path& path, const Arguments& arguments) {
  std::error_code code;
  Source source{.path = path};
  if (std::filesystem::is_regular_file(path, code)) {
    source.report = read_report(path);
  } else {
    source.manifest =
        at_given_length(onnx_io::read_manifest(path), arguments.inputs.dims, arguments.inputs.feed);
  }
  return source;
}

std::vector<Source> open_sources(const Arguments& arguments) {
  const bool compares = !arguments.compare.empty();
  if (compares != arguments.source.empty()) {
    throw Error("{}", compares ? fmt::format("'{}' is given besides what --compare names",
                                             arguments.source.string())
                               : "no sharded model is given")
        .note("a page is about one sharded model, or compares two")
        .help("for example: autosp-onnx report out, or: autosp-onnx report --compare out other");
  }
  std::vector<Source> sources;
  if (!compares) sources.push_back(open_source(arguments.source, arguments));
  for (const std::filesystem::path& path : arguments.compare) {
    sources.push_back(open_source(path, arguments));
  }
  return sources;
}

void check_outputs(const Arguments& arguments, const std::vector<Source>& sources) {
  const std::vector<OutputFile> outputs = {{"-o", arguments.output}, {"--json", arguments.json}};
  std::vector<InputFile> inputs = {{"--feed", arguments.inputs.feed},
                                   {"--model", arguments.model},
                                   {"--device", arguments.device}};
  for (const Source& source : sources) {
    if (!source.manifest) inputs.push_back({"this command", source.path});
  }
  check_output_files(outputs, inputs);
  bool runs = false;
  for (const Source& source : sources) {
    if (!source.manifest) continue;
    runs = true;
    check_output_files(outputs, inputs, source.path, *source.manifest);
  }
  if (runs || (arguments.inputs.feed.empty() && arguments.model.empty())) return;
  throw Error("{} is given, but nothing is to run",
              arguments.inputs.feed.empty() ? "--model" : "--feed")
      .note("reports that are read from files hold the figures of an earlier run")
      .help("leave it out, or give the folder that 'shard' wrote");
}

ReportData report_of(Source& source, const ReportOptions& options) {
  if (!source.manifest) return std::move(source.report);
  return collect_report(source.path, *source.manifest, options);
}

void write_text(const std::filesystem::path& path, const std::string& text) {
  write_output_file(path, [&](const std::filesystem::path& to) {
    executor::PartFile part(to);
    std::ofstream file(part.path(), std::ios::binary);
    file << text << std::flush;
    if (!file) part.refuse(std::strerror(errno));
    file.close();
    part.commit();
  });
}

int run(const Arguments& arguments) {
  executor::restart_with_fast_openblas();
  std::vector<Source> sources = open_sources(arguments);
  check_outputs(arguments, sources);
  const ReportOptions options{.feed = arguments.inputs.feed,
                              .seed = arguments.inputs.seed,
                              .model = arguments.model,
                              .device = load_device(arguments.device),
                              .timeout = arguments.timeout,
                              .threads_per_rank = arguments.threads_per_rank,
                              .repeat = arguments.repeat};
  std::vector<ReportData> reports;
  for (Source& source : sources) reports.push_back(report_of(source, options));
  const bool two = reports.size() == 2;
  // Each is complete before the other begins: a page without its data is still a page.
  write_text(arguments.output,
             two ? comparison_page(reports[0], reports[1]) : report_page(reports[0]));
  if (!arguments.json.empty()) {
    write_text(arguments.json,
               (two ? to_json(reports[0], reports[1]) : to_json(reports[0])) + "\n");
  }
  print_notices();
  bool equal = true;
  for (const ReportData& report : reports) {
    fmt::print("{}: {}\n", report.model, headline(report));
    equal = equal && (!report.validation || report.validation->equal);
  }
  fmt::print("wrote {}\n", arguments.output.string());
  if (!arguments.json.empty()) fmt::print("wrote {}\n", arguments.json.string());
  return equal ? 0 : kMismatch;
}

void add_run_options(CLI::App& command, Arguments& arguments) {
  add_feed_options(command, arguments.inputs);
  command
      .add_option("--model", arguments.model,
                  "The model that was sharded: results are compared with it, memory is predicted "
                  "for it")
      ->type_name("MODEL");
  command
      .add_option("--device", arguments.device,
                  "Whose rates the operators are held against: h100, h200, a100, cpu, or a JSON "
                  "file")
      ->type_name("DEVICE")
      ->capture_default_str();
  command
      .add_option("--threads-per-rank", arguments.threads_per_rank,
                  "Threads of a rank's kernels; 0: the cores divided by the ranks")
      ->check(at_most(kMostThreads))
      ->type_name("N")
      ->capture_default_str();
  command
      .add_option("--repeat", arguments.repeat,
                  "Steps to run; the last is told, those before it "
                  "warm up")
      ->check(at_least_one())
      ->type_name("N")
      ->capture_default_str();
  add_timeout_option(command, arguments.timeout);
}

}  // namespace

void add_report(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      app.add_subcommand("report", "Writes a page about a sharded model, from a run of it");
  command->footer(kFooter);
  command->add_option("folder", arguments->source, "What 'shard' wrote, or a report as JSON")
      ->type_name("OUT");
  command
      ->add_option("--compare", arguments->compare,
                   "Two of them, side by side on one page; the second is measured against the "
                   "first")
      ->expected(2)
      ->type_name("OUT");
  command->add_option("-o,--output", arguments->output, "The page to write")
      ->type_name("HTML")
      ->capture_default_str();
  command->add_option("--json", arguments->json, "Where to write the same figures as JSON")
      ->type_name("JSON");
  add_run_options(*command, *arguments);
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace autosp::cli

// Starting ranks as processes, and ending them together.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "command.h"
#include "executor/run.h"

namespace autosp::cli {

// --np and --transport.
void add_launch_options(CLI::App& command, int64_t& ranks, std::string& transport);

// --link-latency, milliseconds, and --link-rate, GiB/s; 0: none, and unlimited.
struct SlowLinkArguments {
  double latency = 0;
  double rate = 0;
};
executor::SlowLink slow_link(const SlowLinkArguments& arguments);
void add_overlap_option(CLI::App& command, bool& overlap);
// The same, and the options of a slow link.
void add_overlap_options(CLI::App& command, bool& overlap, SlowLinkArguments& link);
// The words that say the same on a command line.
void add_words(const SlowLinkArguments& arguments, std::vector<std::string>& words);

// Replaces this process by mpirun, which starts this program once per rank with these arguments.
[[noreturn]] void start_mpirun(int64_t ranks, const std::vector<std::string>& arguments);

// What ranks find wrong is said once, by rank 0, before any collective runs. All ranks call this.
void agree_to_start(const executor::MpiSession& session, const std::optional<Failure>& problem);

// Runs this process as one rank. A rank that fails ends the others, which would wait for it.
int run_as_rank(const std::function<int(executor::MpiSession&)>& run_rank);

// Under mpirun, --transport threads would run every rank in each process.
void refuse_threads_under_mpirun(const std::string& transport, const executor::MpiSession& session);

}  // namespace autosp::cli

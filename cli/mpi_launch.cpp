#include "mpi_launch.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "base/error.h"
#include "model_arguments.h"

namespace autosp::cli {

void add_launch_options(CLI::App& command, int64_t& ranks, std::string& transport) {
  command.add_option("--np", ranks, "Ranks; must be what the model was sharded for")
      ->check(at_least_one())
      ->type_name("N");
  command
      .add_option("--transport", transport,
                  "threads: all ranks in this process (default); mpi: a process per rank (default "
                  "under mpirun)")
      ->check(CLI::IsMember({"threads", "mpi"}));
}

executor::SlowLink slow_link(const SlowLinkArguments& arguments) {
  constexpr double kGibibyte = 1 << 30;
  return {.latency = arguments.latency * 1e-3, .rate = arguments.rate * kGibibyte};
}

void add_overlap_option(CLI::App& command, bool& overlap) {
  command.add_flag("--overlap", overlap,
                   "Runs collectives beside computations: for a network that is slow beside the "
                   "cores. Takes a thread per rank and more memory");
}

void add_overlap_options(CLI::App& command, bool& overlap, SlowLinkArguments& link) {
  add_overlap_option(command, overlap);
  command
      .add_option("--link-latency", link.latency,
                  "Pretends that every collective takes this much longer, milliseconds")
      ->check(CLI::Range(0.0, 1e6))
      ->type_name("MS")
      ->capture_default_str();
  command
      .add_option("--link-rate", link.rate,
                  "Pretends that a rank sends no faster than this, GiB/s; 0: as fast as it can")
      ->check(CLI::Range(0.0, 1e6))
      ->type_name("RATE")
      ->capture_default_str();
}

void add_words(const SlowLinkArguments& arguments, std::vector<std::string>& words) {
  words.insert(words.end(), {fmt::format("--link-latency={}", arguments.latency),
                             fmt::format("--link-rate={}", arguments.rate)});
}

void start_mpirun(int64_t ranks, const std::vector<std::string>& arguments) {
  std::vector<std::string> words = {"mpirun",
                                    "--oversubscribe",
                                    "--bind-to",
                                    "none",
                                    "-np",
                                    std::to_string(ranks),
                                    std::filesystem::read_symlink("/proc/self/exe").string()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  // Containers run as root, which Open MPI asks to confirm.
  ::setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
  ::setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  ::execvp("mpirun", pointers.data());
  throw Error("mpirun could not be started: {}", std::strerror(errno))
      .note("--transport mpi starts the ranks with it")
      .help("install Open MPI, or use --transport threads");
}

void agree_to_start(const executor::MpiSession& session, const std::optional<Failure>& problem) {
  const auto texts = session.gather(problem ? problem->text : "");
  const auto codes = session.gather(std::to_string(problem ? problem->code : 0));
  for (size_t k = 0; k < texts.size(); ++k) {
    if (codes[k] != "0") session.abort(texts[k], std::stoi(codes[k]));
  }
  if (!problem) return;
  std::this_thread::sleep_for(std::chrono::seconds(30));  // rank 0 ends this process
  std::_Exit(problem->code);
}

int run_as_rank(const std::function<int(executor::MpiSession&)>& run_rank) {
  executor::MpiSession session;
  try {
    return run_rank(session);
  } catch (...) {
    const Failure failure = current_failure();
    session.abort(failure.text, failure.code);
  }
}

void refuse_threads_under_mpirun(const std::string& transport,
                                 const executor::MpiSession& session) {
  if (transport != "threads") return;
  throw Error("mpirun has started {} processes, of which each would run all ranks as threads",
              session.size())
      .note("--transport threads runs every rank in one process")
      .help("leave --transport out, or run it without mpirun");
}

}  // namespace autosp::cli

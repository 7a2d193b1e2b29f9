#include "batch/process_pool.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <thread>

#include "base/error.h"
#include "interruption.h"

namespace autosp::cli::batch {

namespace {

constexpr const char* kThisProgram = "/proc/self/exe";
constexpr int kNotStarted = 127;

// Between fork and exec: only what a signal handler may call.
[[noreturn]] void become(char* const* words, const char* log, pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(kNotStarted);  // it has died already
  const int file = ::open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  const int nothing = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (file < 0 || nothing < 0) ::_exit(kNotStarted);
  ::dup2(nothing, STDIN_FILENO);
  ::dup2(file, STDOUT_FILENO);
  ::dup2(file, STDERR_FILENO);
  ::execv(kThisProgram, words);
  ::_exit(kNotStarted);
}

int exit_code(int status) {
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace

void ProcessPool::start(size_t key, const std::vector<std::string>& arguments,
                        const std::filesystem::path& log) {
  std::vector<std::string> copies = {"autosp-onnx"};
  copies.insert(copies.end(), arguments.begin(), arguments.end());
  std::vector<char*> words;
  for (std::string& word : copies) words.push_back(word.data());
  words.push_back(nullptr);
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child == 0) become(words.data(), log.c_str(), parent);
  if (child < 0) {
    throw Error("the system refuses another process: {}", std::strerror(errno))
        .note(fmt::format("{} are running", running_.size()))
        .help("run fewer at once with --jobs");
  }
  running_.emplace(child, key);
}

Finished ProcessPool::wait() {
  constexpr auto kInterval = std::chrono::milliseconds(10);
  while (true) {
    HeldSignals::check();  // first: the terminal sends an interrupt to the processes, too
    int status = 0;
    const pid_t child = ::waitpid(-1, &status, WNOHANG);
    const auto found = running_.find(child);
    if (child > 0 && found != running_.end()) {
      const Finished finished{found->second, exit_code(status)};
      running_.erase(found);
      if (finished.code > 128) HeldSignals::check();
      return finished;
    }
    std::this_thread::sleep_for(kInterval);
  }
}

void ProcessPool::stop() {
  for (const auto& [child, key] : running_) ::kill(child, SIGTERM);
  for (const auto& [child, key] : running_) {
    while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  running_.clear();
}

}  // namespace autosp::cli::batch

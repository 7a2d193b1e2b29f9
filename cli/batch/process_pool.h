// Runs of this program, a few at a time.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace autosp::cli::batch {

struct Finished {
  size_t key = 0;  // as given to start
  int code = 0;    // exit code; 128 and the signal's number where one ended it
};

// Processes end with this one: by SIGTERM when it is killed, and in the destructor.
class ProcessPool {
 public:
  explicit ProcessPool(size_t most) : most_(most) {}
  ~ProcessPool() { stop(); }
  ProcessPool(const ProcessPool&) = delete;
  ProcessPool& operator=(const ProcessPool&) = delete;

  bool has_room() const { return running_.size() < most_; }
  bool is_idle() const { return running_.empty(); }

  // Runs this program with these arguments; what it prints goes to `log`. Throws Error when the
  // system refuses a process.
  void start(size_t key, const std::vector<std::string>& arguments,
             const std::filesystem::path& log);

  // The next to end. Throws Interruption when a signal asks this program to end (interruption.h).
  Finished wait();

  // Asks all to end, and waits until they have.
  void stop();

 private:
  size_t most_;
  std::map<pid_t, size_t> running_;
};

}  // namespace autosp::cli::batch

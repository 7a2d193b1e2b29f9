// What a batch prints while it runs: a bar on a terminal, a line per job in a log.
#pragma once

#include <string>

namespace autosp::cli::batch {

class Progress {
 public:
  // `quiet` prints failures only.
  Progress(size_t jobs, bool quiet);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // A job has ended: "converted", "up to date" or "failed"; `detail` is a failure's first line, or
  // how long it took.
  void ended(const std::string& name, const std::string& what, const std::string& detail,
             bool failed);

 private:
  void draw() const;
  void clear() const;

  size_t jobs_;
  size_t done_ = 0;
  size_t failed_ = 0;
  bool quiet_;
  bool terminal_;
};

}  // namespace autosp::cli::batch

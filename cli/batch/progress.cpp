#include "batch/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace autosp::cli::batch {

Progress::Progress(size_t jobs, bool quiet)
    : jobs_(jobs), quiet_(quiet), terminal_(!quiet && ::isatty(STDERR_FILENO) == 1) {
  draw();
}

Progress::~Progress() { clear(); }

void Progress::ended(const std::string& name, const std::string& what, const std::string& detail,
                     bool failed) {
  ++done_;
  if (failed) ++failed_;
  if (!quiet_ || failed) {
    clear();
    fmt::print(stderr, "[{:>{}}/{}] {:<10} {}{}\n", done_, fmt::formatted_size("{}", jobs_), jobs_,
               what, name, detail.empty() ? "" : "  " + detail);
  }
  draw();
}

void Progress::draw() const {
  if (!terminal_ || jobs_ == 0) return;
  constexpr size_t kWidth = 40;
  const size_t filled = kWidth * done_ / jobs_;
  fmt::print(stderr, "[{:#<{}}{:.<{}}] {} of {}{}", "", filled, "", kWidth - filled, done_, jobs_,
             failed_ == 0 ? "" : fmt::format(", {} failed", failed_));
  std::fflush(stderr);
}

void Progress::clear() const {
  if (terminal_) fmt::print(stderr, "\r\033[K");
}

}  // namespace autosp::cli::batch

// Signals that ask the program to end, while something unfinished lies on disk.
#pragma once

#include <csignal>
#include <exception>
#include <vector>

namespace autosp::cli {

// Thrown where the program is ready to end.
class Interruption : public std::exception {
 public:
  explicit Interruption(int signal) : signal_(signal) {}
  const char* what() const noexcept override { return "interrupted"; }
  int exit_code() const { return 128 + signal_; }  // what a shell makes of it

 private:
  int signal_;
};

// While one of these exists, SIGINT, SIGTERM and SIGHUP are only noted, those that were ignored
// before excepted; one that no check has seen takes effect at the end. One at a time.
class HeldSignals {
 public:
  HeldSignals();
  ~HeldSignals();
  HeldSignals(const HeldSignals&) = delete;
  HeldSignals& operator=(const HeldSignals&) = delete;

  // Throws Interruption when one has come.
  static void check();

 private:
  struct Held {
    int signal;
    struct sigaction before;
  };
  std::vector<Held> held_;
};

}  // namespace autosp::cli

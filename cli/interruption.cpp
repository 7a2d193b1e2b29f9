#include "interruption.h"

#include <atomic>

namespace autosp::cli {

namespace {

// The only state of this program that is global: a signal's handler can reach nothing else.
std::atomic<int> noted_signal{0};
static_assert(std::atomic<int>::is_always_lock_free);

void note_signal(int signal) { noted_signal = signal; }

}  // namespace

HeldSignals::HeldSignals() {
  noted_signal = 0;
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before {};
    sigaction(signal, nullptr, &before);
    if (before.sa_handler == SIG_IGN) continue;
    struct sigaction action {};
    action.sa_handler = note_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(signal, &action, nullptr);
    held_.push_back({signal, before});
  }
}

HeldSignals::~HeldSignals() {
  for (const Held& held : held_) sigaction(held.signal, &held.before, nullptr);
  // Too late to undo anything; but the program shall end.
  if (const int signal = noted_signal; signal != 0 && std::uncaught_exceptions() == 0)
    raise(signal);
}

void HeldSignals::check() {
  if (const int signal = noted_signal.exchange(0)) throw Interruption(signal);
}

}  // namespace autosp::cli

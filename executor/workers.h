// The threads of one rank: its share of the machine's cores, kept from step to step.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "base/error.h"

namespace autosp::executor {

// What to tell when the system refuses a thread; of is what needs it.
Error thread_refused(const std::string& of, const std::system_error& error);

// Not to be used by two threads at once.
class Workers {
 public:
  // `count` threads in all; the caller is one of them. They sleep while there is nothing to do.
  // Throws Error when the system refuses one.
  explicit Workers(int count);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int count() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls task(worker) for every worker in [0, count()), each in a thread of its own, and waits for
  // all of them. The task must not throw.
  template <typename Task>
  void run(const Task& task) {
    run_on_all([](const void* t, int worker) { (*static_cast<const Task*>(t))(worker); }, &task);
  }

  // Calls body(worker, index) for every index in [0, size), in no particular order: whoever is free
  // takes the next one.
  template <typename Body>
  void for_each(int64_t size, const Body& body) {
    std::atomic<int64_t> next{0};
    run([&](int worker) {
      for (int64_t k = next++; k < size; k = next++) body(worker, k);
    });
  }

 private:
  using Function = void (*)(const void*, int);
  void run_on_all(Function function, const void* task);
  void serve(int worker);
  void stop();

  Function function_ = nullptr;
  const void* task_ = nullptr;
  std::atomic<uint32_t> round_{0};  // counts calls of run; the workers wait for it to change
  std::atomic<int> busy_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::jthread> threads_;  // last: joined before what they use goes
};

}  // namespace autosp::executor

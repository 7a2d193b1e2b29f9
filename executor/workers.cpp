#include "executor/workers.h"

namespace autosp::executor {

Error thread_refused(const std::string& of, const std::system_error& error) {
  return Error("{} cannot be started: {}", of, error.code().message())
      .note("the system limits a user's threads, and the memory for their stacks")
      .help("allow more (ulimit -u, ulimit -v), or run with fewer --threads-per-rank or ranks");
}

Workers::Workers(int count) {
  try {
    for (int worker = 1; worker < count; ++worker) {
      threads_.emplace_back([this, worker] { serve(worker); });
    }
  } catch (const std::system_error& error) {
    stop();  // those that run would wait for ever, and whoever joins them too
    throw thread_refused(fmt::format("thread {} of the {} of a rank", threads_.size() + 2, count),
                         error);
  } catch (...) {
    stop();
    throw;
  }
}

Workers::~Workers() { stop(); }

void Workers::stop() {
  stopping_ = true;
  ++round_;
  round_.notify_all();
}

void Workers::run_on_all(Function function, const void* task) {
  function_ = function;
  task_ = task;
  busy_ = static_cast<int>(threads_.size());
  ++round_;
  round_.notify_all();
  function(task, 0);
  for (int busy = busy_; busy != 0; busy = busy_) busy_.wait(busy);
}

void Workers::serve(int worker) {
  uint32_t seen = 0;
  while (true) {
    round_.wait(seen);
    seen = round_;
    if (stopping_) return;
    function_(task_, worker);
    if (--busy_ == 0) busy_.notify_one();
  }
}

}  // namespace autosp::executor

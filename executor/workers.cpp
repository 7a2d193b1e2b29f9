#include "executor/workers.h"

namespace autosp::executor {

Workers::Workers(int count) {
  for (int worker = 1; worker < count; ++worker) {
    threads_.emplace_back([this, worker] { serve(worker); });
  }
}

Workers::~Workers() {
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

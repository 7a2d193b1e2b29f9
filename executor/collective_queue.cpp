#include "executor/collective_queue.h"

#include <utility>

#include "executor/workers.h"

namespace autosp::executor {

CollectiveQueue::CollectiveQueue() {
  try {
    thread_ = std::jthread([this](const std::stop_token& stop) { serve(stop); });
  } catch (const std::system_error& error) {
    throw thread_refused("the thread of a rank's collectives", error);
  }
}

CollectiveQueue::~CollectiveQueue() {
  const std::lock_guard lock(mutex_);
  waiting_.clear();
  thread_.request_stop();
}

void CollectiveQueue::post(std::function<void()> collective) {
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(collective));
  }
  posted_.notify_one();
}

void CollectiveQueue::wait_for(int count) {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [&] { return count_ >= count || failure_; });
  if (failure_) std::rethrow_exception(failure_);
}

void CollectiveQueue::reset() {
  const std::lock_guard lock(mutex_);
  count_ = 0;
}

void CollectiveQueue::serve(const std::stop_token& stop) {
  for (;;) {
    std::function<void()> collective;
    {
      std::unique_lock lock(mutex_);
      if (!posted_.wait(lock, stop, [&] { return !waiting_.empty(); })) return;
      collective = std::move(waiting_.front());
      waiting_.pop_front();
    }
    std::exception_ptr failure;
    try {
      collective();
    } catch (...) {
      failure = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex_);
      ++count_;
      if (failure) {
        failure_ = failure;
        waiting_.clear();
      }
    }
    ended_.notify_all();
    if (failure) return;
  }
}

}  // namespace autosp::executor

// A rank's collectives on a thread of their own, one after the other.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace autosp::executor {

class CollectiveQueue {
 public:
  // Throws Error when the system refuses the thread.
  CollectiveQueue();
  // Those that wait for their turn are dropped; the one under way must end by itself
  // (Communicator::give_up).
  ~CollectiveQueue();
  CollectiveQueue(const CollectiveQueue&) = delete;
  CollectiveQueue& operator=(const CollectiveQueue&) = delete;

  void post(std::function<void()> collective);

  // Returns when so many of all that were posted since the last reset have ended. Throws what one
  // of them threw; none runs after that.
  void wait_for(int count);
  // Counts from zero again; all must have ended.
  void reset();

 private:
  void serve(const std::stop_token& stop);

  std::mutex mutex_;  // guards everything but the thread
  std::condition_variable_any posted_;
  std::condition_variable ended_;
  std::deque<std::function<void()>> waiting_;
  int count_ = 0;  // that have ended
  std::exception_ptr failure_;
  std::jthread thread_;  // last: joined before what it uses goes
};

}  // namespace autosp::executor

#include "executor/world.h"

#include <thread>
#include <vector>

#include "executor/transport/threads.h"
#include "executor/workers.h"

namespace autosp::executor {

void run_world(int size, double timeout,
               const std::function<void(int rank, Communicator& communicator)>& run_rank) {
  ThreadWorld world(size, timeout);
  const auto guarded = [&](int rank) {
    try {
      run_rank(rank, world.rank(rank));
      world.finish(rank);
    } catch (const Interrupted&) {
      world.finish(rank);
    } catch (...) {
      world.fail(rank, std::current_exception());
    }
  };
  {
    std::vector<std::jthread> threads;
    int rank = 1;
    try {
      for (; rank < size; ++rank) threads.emplace_back(guarded, rank);
    } catch (const std::system_error& error) {
      world.fail(rank, std::make_exception_ptr(
                           thread_refused(fmt::format("the thread of rank {}", rank), error)));
    }
    guarded(0);
  }
  if (const std::exception_ptr failure = world.failure()) std::rethrow_exception(failure);
}

}  // namespace autosp::executor

#include "executor/run.h"

#include <malloc.h>

#include <thread>

#include "executor/execute.h"
#include "executor/memory.h"
#include "executor/openblas.h"
#include "executor/transport/threads.h"
#include "executor/workers.h"

namespace autosp::executor {

RunResult run_in_threads(const std::vector<std::shared_ptr<const ir::Graph>>& graphs,
                         const std::vector<Arrays>& feeds, const RunOptions& options) {
  const size_t size = graphs.size();
  AUTOSP_CHECK(size > 0 && feeds.size() == size, "{} graphs, {} feeds", size, feeds.size());
  CompileOptions compile_options = options.compile;
  compile_options.workers = options.threads_per_rank > 0
                                ? options.threads_per_rank
                                : default_blas_threads(static_cast<int>(size));
  set_blas_threads(compile_options.workers);
  std::vector<Program> programs;
  for (const auto& graph : graphs) programs.push_back(compile(graph, compile_options));

  malloc_trim(0);  // what loading the graphs has left
  ThreadWorld world(static_cast<int>(size), options.timeout);
  RunResult result;
  result.ranks.resize(size);
  std::vector<std::vector<TraceEvent>> events(size);
  const auto epoch = Clock::now();
  const auto run_rank = [&](size_t k) {
    const int rank = static_cast<int>(k);
    try {
      result.ranks[k] = execute(
          programs[k], feeds[k], world.rank(rank),
          {options.data_folder, options.trace ? &events[k] : nullptr, epoch, options.repeat});
      world.finish(rank);
    } catch (const Interrupted&) {
      world.finish(rank);
    } catch (...) {
      world.fail(rank, std::current_exception());
    }
  };
  {
    std::vector<std::jthread> threads;
    size_t k = 1;
    try {
      for (; k < size; ++k) threads.emplace_back(run_rank, k);
    } catch (const std::system_error& error) {
      world.fail(static_cast<int>(k), std::make_exception_ptr(thread_refused(
                                          fmt::format("the thread of rank {}", k), error)));
    }
    run_rank(0);
  }
  if (const std::exception_ptr failure = world.failure()) std::rethrow_exception(failure);
  result.resident_peak = resident_peak();
  for (const auto& rank_events : events) {
    result.events.insert(result.events.end(), rank_events.begin(), rank_events.end());
  }
  return result;
}

}  // namespace autosp::executor

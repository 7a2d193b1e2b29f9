#include "executor/run.h"

#include <malloc.h>

#include <chrono>
#include <optional>
#include <thread>

#include "executor/execute.h"
#include "executor/memory.h"
#include "executor/openblas.h"
#include "executor/rank_device.h"
#include "executor/world.h"

namespace autosp::executor {

void SlowLink::carry(int64_t bytes) const {
  const double seconds = latency + (rate > 0 ? static_cast<double>(bytes) / rate : 0);
  if (seconds > 0) std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

RunResult run_in_threads(const std::vector<std::shared_ptr<const ir::Graph>>& graphs,
                         const std::vector<Arrays>& feeds, const RunOptions& options) {
  const size_t size = graphs.size();
  AUTOSP_CHECK(size > 0 && feeds.size() == size, "{} graphs, {} feeds", size, feeds.size());
  CompileOptions compile_options = options.compile;
  compile_options.workers = options.threads_per_rank > 0
                                ? options.threads_per_rank
                                : default_blas_threads(static_cast<int>(size));
  set_blas_threads(compile_options.workers);
  std::optional<KernelTable> device_table;
  if (options.backend)
    compile_options.kernels = &device_table.emplace(device_kernels(*options.backend));
  std::vector<Program> programs;
  for (const auto& graph : graphs) programs.push_back(compile(graph, compile_options));

  malloc_trim(0);  // what loading the graphs has left
  RunResult result;
  result.ranks.resize(size);
  std::vector<std::vector<TraceEvent>> events(size);
  const auto epoch = Clock::now();
  run_world(static_cast<int>(size), options.timeout, [&](int rank, Communicator& communicator) {
    const auto k = static_cast<size_t>(rank);
    std::optional<RankDevice> device;
    if (options.backend) device.emplace(*options.backend, communicator);
    result.ranks[k] = execute(programs[k], feeds[k], communicator,
                              {options.data_folder, options.trace ? &events[k] : nullptr, epoch,
                               options.repeat, options.link, device ? &*device : nullptr});
  });
  result.resident_peak = resident_peak();
  for (const auto& rank_events : events) {
    result.events.insert(result.events.end(), rank_events.begin(), rank_events.end());
  }
  return result;
}

}  // namespace autosp::executor

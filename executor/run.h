// Runs rank graphs: ranks as threads of this process, or this process as one rank under MPI.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "executor/npz.h"
#include "executor/program.h"
#include "executor/trace.h"

namespace autosp::executor {

class Backend;

// A network that is slower than the one there is: every collective takes this much longer, in which
// its rank's cores are free.
struct SlowLink {
  double latency = 0;  // seconds
  double rate = 0;     // bytes per second that a rank sends; 0: unlimited

  // Returns when it has carried them.
  void carry(int64_t bytes) const;
};

struct RunOptions {
  // Folder that external data locations are relative to.
  std::filesystem::path data_folder;
  // A collective that waits longer for another rank ends the run, seconds.
  double timeout = 60;
  // Threads per rank, of OpenBLAS and of its own kernels; 0: cores divided by the ranks on this
  // machine, at least 1.
  int threads_per_rank = 0;
  bool trace = false;  // of the last step
  // Runs the same step this often; RankResult::seconds is the median.
  int repeat = 1;
  SlowLink link;
  std::shared_ptr<Backend> backend;  // of the devices that ranks run on; null: the CPU
  CompileOptions compile;
};

// What one execution of one collective did.
struct CollectiveRecord {
  std::string node;
  std::string op;
  // To other ranks, for operand bytes n and P members: (P-1) n for AllGather, n without the own
  // part for ReduceScatter and AllToAll, 2 n (P-1) / P for AllReduce.
  int64_t bytes_sent = 0;
  double seconds = 0;  // waiting included
};

struct RankResult {
  int rank = 0;
  Arrays outputs;  // by graph output name
  MemoryPlan planned;
  int64_t arena_touched = 0;  // bytes: pages of the arena that became resident
  int64_t measured_peak = 0;  // bytes: those, and what the transport held for itself
  double seconds = 0;         // of a step: its kernels and collectives
  // Of the last step, in which nothing was computed because of collectives.
  double exposed_seconds = 0;
  std::vector<CollectiveRecord> collectives;  // of the last step, in order of execution
  std::vector<std::string> notices;  // of a device: what the user should know of how it ran
};

struct RunResult {
  std::vector<RankResult> ranks;
  int64_t resident_peak = 0;  // bytes: high-water mark of this process, without pages of others
  std::vector<TraceEvent> events;
};

// Runs graphs[k] with feeds[k] as rank k, all at once. One graph is a world of one rank. Throws the
// Error of the rank that failed first; by then every rank has ended.
RunResult run_in_threads(const std::vector<std::shared_ptr<const ir::Graph>>& graphs,
                         const std::vector<Arrays>& feeds, const RunOptions& options = {});

// MPI, from construction (MPI_Init) to destruction (MPI_Finalize). At most one per process.
class MpiSession {
 public:
  MpiSession();
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  int rank() const;
  int size() const;
  // This rank's share of the cores that the ranks of its machine may use.
  int cores() const;
  // Whether other threads than the first may send and receive, one at a time.
  bool lets_threads_call() const;

  // Every rank's text, of any length, in rank order, on rank 0; nothing on the others.
  std::vector<std::string> gather(const std::string& text) const;

  // Prints `message` to stderr and ends every rank with `code`.
  [[noreturn]] void abort(const std::string& message, int code) const;

  Communicator& communicator(double timeout);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// How many processes mpirun or srun has started as this run; 0 in one that neither has started.
int mpi_processes();

// Throws Error where collectives cannot run in a thread of their own.
void check_overlap(const MpiSession& session);

// Runs this process's rank graph. Throws this rank's Error; the caller must then abort the session,
// as the other ranks may wait for this one.
RunResult run_mpi_rank(MpiSession& session, std::shared_ptr<const ir::Graph> graph,
                       const Arrays& feeds, const RunOptions& options = {});

}  // namespace autosp::executor

#include <fmt/format.h>
#include <malloc.h>
#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "executor/execute.h"
#include "executor/memory.h"
#include "executor/openblas.h"
#include "executor/rank_device.h"
#include "executor/run.h"
#include "executor/transport/messages.h"
#include "executor/transport/mpi.h"

namespace autosp::executor {

struct MpiSession::State {
  int rank = 0;
  int size = 1;
  int cores = 1;
  int threads = MPI_THREAD_SINGLE;  // what the library provides
  std::unique_ptr<Communicator> communicator;
};

int mpi_processes() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
    if (const char* size = std::getenv(name)) return std::max(1, std::atoi(size));
  }
  // srun --mpi=pmix tells a process its rank in a name of PMIx, and the size only in Slurm's own.
  if (std::getenv("PMIX_RANK") == nullptr) return 0;
  const char* size = std::getenv("SLURM_STEP_NUM_TASKS");
  if (size == nullptr) size = std::getenv("SLURM_NTASKS");
  return size == nullptr ? 1 : std::max(1, std::atoi(size));
}

namespace {

constexpr int kGatherTag = 5;

// mpirun may have bound every rank to cores of its own, or all to the same.
int cores_of_this_rank() {
  cpu_set_t own;
  CPU_ZERO(&own);
  if (sched_getaffinity(0, sizeof(own), &own) != 0) return 1;
  cpu_set_t all = own;
  MPI_Comm machine = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
  MPI_Allreduce(&own, &all, sizeof(own), MPI_BYTE, MPI_BOR, machine);
  int ranks = 1;
  MPI_Comm_size(machine, &ranks);
  MPI_Comm_free(&machine);
  return std::max(1, std::min(CPU_COUNT(&own), CPU_COUNT(&all) / ranks));
}

}  // namespace

MpiSession::MpiSession() : state_(std::make_unique<State>()) {
  // A rank's collectives may run in a thread of their own.
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &state_->threads);
  MPI_Comm_rank(MPI_COMM_WORLD, &state_->rank);
  MPI_Comm_size(MPI_COMM_WORLD, &state_->size);
  state_->cores = cores_of_this_rank();
}

MpiSession::~MpiSession() {
  state_->communicator.reset();
  MPI_Finalize();
}

int MpiSession::rank() const { return state_->rank; }
int MpiSession::size() const { return state_->size; }
int MpiSession::cores() const { return state_->cores; }
bool MpiSession::lets_threads_call() const { return state_->threads >= MPI_THREAD_SERIALIZED; }

std::vector<std::string> MpiSession::gather(const std::string& text) const {
  const auto length = static_cast<int64_t>(text.size());
  std::vector<int64_t> lengths(static_cast<size_t>(size()));
  MPI_Gather(&length, 1, MPI_INT64_T, lengths.data(), 1, MPI_INT64_T, 0, MPI_COMM_WORLD);
  std::vector<std::string> texts(rank() == 0 ? lengths.size() : 0);
  Messages messages(MPI_COMM_WORLD);
  if (rank() != 0) {
    messages.send(0, kGatherTag, reinterpret_cast<const std::byte*>(text.data()), length);
  } else {
    texts[0] = text;
    for (size_t k = 1; k < texts.size(); ++k) {
      texts[k].resize(static_cast<size_t>(lengths[k]));
      messages.receive(static_cast<int>(k), kGatherTag,
                       reinterpret_cast<std::byte*>(texts[k].data()), lengths[k]);
    }
  }
  messages.wait(std::chrono::duration<double>::max());
  return texts;
}

void MpiSession::abort(const std::string& message, int code) const {
  fmt::print(stderr, "{}\n", message);
  std::fflush(nullptr);
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

Communicator& MpiSession::communicator(double timeout) {
  if (!state_->communicator) state_->communicator = make_mpi_communicator(timeout);
  return *state_->communicator;
}

void check_overlap(const MpiSession& session) {
  if (session.lets_threads_call()) return;
  throw Error("this MPI library lets one thread alone send and receive")
      .note("collectives beside computation run in a thread of their own")
      .help("run without --overlap, or with a library that has MPI_THREAD_SERIALIZED");
}

RunResult run_mpi_rank(MpiSession& session, std::shared_ptr<const ir::Graph> graph,
                       const Arrays& feeds, const RunOptions& options) {
  CompileOptions compile_options = options.compile;
  if (compile_options.overlap) check_overlap(session);
  compile_options.workers =
      options.threads_per_rank > 0 ? options.threads_per_rank : session.cores();
  set_blas_threads(compile_options.workers);
  std::optional<KernelTable> device_table;
  std::optional<RankDevice> device;
  if (options.backend) {
    compile_options.kernels = &device_table.emplace(device_kernels(*options.backend));
    device.emplace(*options.backend, session.communicator(options.timeout));
  }
  RunResult result;
  const Program program = compile(std::move(graph), compile_options);
  malloc_trim(0);  // what loading the graph has left
  result.ranks.push_back(
      execute(program, feeds, session.communicator(options.timeout),
              {options.data_folder, options.trace ? &result.events : nullptr, Clock::now(),
               options.repeat, options.link, device ? &*device : nullptr}));
  result.resident_peak = session.communicator(options.timeout).own_resident_peak();
  return result;
}

}  // namespace autosp::executor

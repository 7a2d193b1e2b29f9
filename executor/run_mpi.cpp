#include <fmt/format.h>
#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "executor/execute.h"
#include "executor/memory.h"
#include "executor/openblas.h"
#include "executor/run.h"
#include "executor/transport/mpi.h"

namespace autosp::executor {

struct MpiSession::State {
  int rank = 0;
  int size = 1;
  int cores = 1;
  std::unique_ptr<Communicator> communicator;
};

int mpi_processes() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
    if (const char* size = std::getenv(name)) return std::max(1, std::atoi(size));
  }
  return 0;
}

namespace {

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
  int provided = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
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

std::vector<std::string> MpiSession::gather(const std::string& text) const {
  const int length = static_cast<int>(text.size());
  std::vector<int> lengths(static_cast<size_t>(size()));
  MPI_Gather(&length, 1, MPI_INT, lengths.data(), 1, MPI_INT, 0, MPI_COMM_WORLD);
  std::vector<int> begins(lengths.size(), 0);
  std::partial_sum(lengths.begin(), lengths.end() - 1, begins.begin() + 1);
  std::string all(static_cast<size_t>(begins.back()) + static_cast<size_t>(lengths.back()), '\0');
  MPI_Gatherv(text.data(), length, MPI_CHAR, all.data(), lengths.data(), begins.data(), MPI_CHAR, 0,
              MPI_COMM_WORLD);
  std::vector<std::string> texts;
  if (rank() != 0) return texts;
  for (size_t k = 0; k < lengths.size(); ++k) {
    texts.push_back(all.substr(static_cast<size_t>(begins[k]), static_cast<size_t>(lengths[k])));
  }
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

RunResult run_mpi_rank(MpiSession& session, std::shared_ptr<const ir::Graph> graph,
                       const Arrays& feeds, const RunOptions& options) {
  CompileOptions compile_options = options.compile;
  compile_options.workers =
      options.threads_per_rank > 0 ? options.threads_per_rank : session.cores();
  set_blas_threads(compile_options.workers);
  RunResult result;
  const Program program = compile(std::move(graph), compile_options);
  result.ranks.push_back(execute(program, feeds, session.communicator(options.timeout),
                                 {options.data_folder, options.trace ? &result.events : nullptr,
                                  Clock::now(), options.repeat}));
  result.resident_peak = resident_peak();
  return result;
}

}  // namespace autosp::executor

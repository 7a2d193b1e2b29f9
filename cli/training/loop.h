// The training loop: what happens before it, every step of one rank, and checkpoints.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "executor/communicator.h"
#include "executor/npz.h"
#include "onnx/manifest.h"
#include "training/batches.h"
#include "training/learning_rate.h"
#include "transforms/training/training_plan.h"

namespace autosp::executor {
class Backend;
}

namespace autosp::cli {

// What the user asks for.
struct TrainingRun {
  std::filesystem::path folder;
  std::filesystem::path data;
  std::filesystem::path initial;     // empty: as the data or the model have them
  std::filesystem::path checkpoint;  // empty: none are written
  int64_t steps = 0;
  int64_t every = 0;  // 0: a checkpoint after the last step only
  LearningRate rate;
  bool resume = false;
  bool overlap = false;                        // collectives of a step run beside its computations
  bool fuse = false;                           // elementwise operators that feed each other as one
  std::shared_ptr<executor::Backend> backend;  // of the devices that ranks run on; null: the CPU
};

// All that is read before the first step; the same on every rank.
struct TrainingJob {
  onnx_io::Manifest manifest;
  transforms::TrainingPlan plan;
  Batches batches;
  executor::Arrays state;   // whole parameters, and optimizer state where it was resumed
  executor::Arrays frozen;  // parameters that are not trained
  int64_t first_step = 1;
  std::filesystem::path resumed_from;
  std::vector<std::string> notes;  // on what was read, for the user
};

// `started`: ranks that run; 0 where that is not known yet. Throws Error for what does not fit.
TrainingJob prepare(const TrainingRun& run, int64_t started);
// The same on batches that are there already; the run's data are not read.
TrainingJob prepare(const TrainingRun& run, int64_t started, Batches batches);

// Of ranks that have read their files each for itself, and had its own command line: throws Error
// where these differ. All ranks call it together.
void check_same_job(const TrainingJob& job, const TrainingRun& run,
                    executor::Communicator& communicator);

struct LoopStep {
  int64_t step = 0;
  std::vector<double> rank_losses;
  std::optional<double> gradient_norm;
  double rate = 0;
  double seconds = 0;
};

struct LoopResult {
  executor::Arrays parameters;                  // whole, on rank 0, where asked for
  std::vector<transforms::TrainingBytes> held;  // by rank, measured
  std::vector<int64_t> arenas;                  // by rank: RankTrainer::arena_bytes()
  std::set<std::string> notices;                // of all ranks: what the user should know
};

// One rank's loop; all ranks call it together. `state`: the job's, which the caller should not
// keep, as the trainer has what it needs of it in memory of its own. Rank 0 writes the checkpoints.
// Ranks must hold the same parameters at the end; that they do not is a bug.
LoopResult run_loop(const TrainingJob& job, executor::Arrays state, const TrainingRun& run,
                    executor::Communicator& communicator, int workers, bool wants_parameters,
                    const std::function<void(const LoopStep&)>& report);

// Every rank's numbers, one rank after the other, on every rank; all call it together.
std::vector<double> gather_numbers(const std::vector<double>& own, const std::string& what,
                                   executor::Communicator& communicator);

// A batch, whole: data, parameters that are not trained, and, where the model draws at random, the
// batch's number as that of the step, so that no two micro-batches draw alike.
executor::Arrays whole_batch(const TrainingJob& job, int64_t batch);
// This rank's feeds of a batch: its slices of the data, and parameters that are not trained.
executor::Arrays batch_feeds(const TrainingJob& job, int64_t batch, int64_t rank);

}  // namespace autosp::cli

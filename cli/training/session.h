// One rank of a training run: its programs, and what it keeps from step to step.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "executor/communicator.h"
#include "executor/npz.h"
#include "executor/program.h"
#include "executor/rank_device.h"
#include "executor/session.h"
#include "onnx/manifest.h"
#include "transforms/training/training_plan.h"

namespace autosp::cli {

// A rank's graphs: the step, the sum of micro-batches, which is null where there is one only, and
// the update.
struct TrainingGraphs {
  std::shared_ptr<const ir::Graph> step;
  std::shared_ptr<const ir::Graph> accumulate;
  std::shared_ptr<const ir::Graph> update;
};

// The graphs of one rank of a sharded model. Throws Error for a folder without an optimizer.
TrainingGraphs load_training_graphs(const std::filesystem::path& folder,
                                    const onnx_io::Manifest& manifest,
                                    const transforms::TrainingPlan& plan, int64_t rank);

// In the order in which they run, with what they leave for each other: gradients, their sums,
// parameters and states.
std::vector<executor::Turn> training_turns(const TrainingGraphs& graphs);

struct StepReport {
  double loss = 0;                      // of all micro-batches together, as this rank has it
  std::optional<double> gradient_norm;  // before clipping
  double seconds = 0;
  executor::Arrays gradients;  // where asked for: as the rank's graph names them
};

// How a rank's graphs run.
struct TrainerOptions {
  int workers = 1;
  bool overlap = false;                  // collectives of a step beside its computations
  bool fuse = false;                     // elementwise operators that feed each other as one step
  executor::Backend* backend = nullptr;  // null: the CPU
};

class RankTrainer {
 public:
  // `communicator`, `plan` and the backend must outlive it. `data_folder`: what
  // external data is relative to.
  RankTrainer(const TrainingGraphs& graphs, const transforms::TrainingPlan& plan,
              const onnx_io::Manifest& manifest, std::filesystem::path data_folder,
              executor::Communicator& communicator, const TrainerOptions& options);

  // Parameters and optimizer state by whole arrays: parameters by their names, state as
  // whole_state() names it, and zeros where it has none.
  void load(const executor::Arrays& whole);
  // Calls `use` with every whole parameter, and every whole state, one after the other; all ranks
  // call it together, those that use them and those that help to gather them.
  using Use = std::function<void(const std::string& name, const ir::Tensor& array)>;
  void for_each_parameter(const Use& use);
  void for_each_state(const Use& use);
  // All of them where they are `wanted`; empty on other ranks. All ranks call it together.
  executor::Arrays whole_parameters(bool wanted = true);
  executor::Arrays whole_state(bool wanted = true);

  // Forward, backward and update. One feed per micro-batch, with this rank's slices. `step` counts
  // from 1.
  StepReport step(const std::vector<executor::Arrays>& micro_batches, double rate, int64_t step,
                  bool keep_gradients = false);

  // What it holds, and of the gradients, which go with the step, what the last one held; bytes.
  transforms::TrainingBytes held_bytes() const;
  // Of the one arena of all its programs: what it keeps and what they work in.
  int64_t arena_bytes() const;
  // What the user should know of how it ran.
  const std::set<std::string>& notices() const { return notices_; }

 private:
  using Names = std::set<std::string>;

  void keep(const std::string& name, const ir::Tensor& value, Names& among);
  executor::Arrays run(const executor::Program& program, const executor::Arrays& feeds);
  double accumulate(const std::vector<executor::Arrays>& micro_batches, double& weight);
  executor::Arrays gradients();
  executor::Arrays mean_gradients(double scale);
  void use_whole(const std::string& prefix, const transforms::UpdateUnit& unit,
                 const std::string& kept, const Use& use);
  double number(const executor::Arrays& outputs, const std::string& name) const;
  const executor::Program& step_program() const { return programs_.front(); }
  const executor::Program& sum_program() const { return programs_[1]; }
  const executor::Program& update_program() const { return programs_.back(); }

  const transforms::TrainingPlan& plan_;
  std::string loss_;
  std::string loss_weight_;
  executor::Communicator& communicator_;
  std::unique_ptr<executor::RankDevice> device_;  // null: the CPU
  bool accumulates_;
  std::vector<executor::Program> programs_;  // step, sum of micro-batches if there are, update
  std::vector<transforms::UpdateUnit> units_;
  Names parameters_;  // or, at zero 3, units
  Names states_;      // "<unit>.<state>"
  int64_t gradient_bytes_ = 0;
  std::set<std::string> notices_;
  std::unique_ptr<executor::Session> session_;  // last: ended before what it uses goes
};

// Name of a parameter's state among whole arrays: "mean/model.norm.weight".
std::string whole_state_name(const std::string& state, const std::string& parameter);

}  // namespace autosp::cli

#include "training/curves.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <mutex>

#include "base/error.h"
#include "executor/openblas.h"
#include "executor/world.h"
#include "feeds.h"
#include "shard/roles.h"
#include "training/arguments.h"
#include "training/curve_rounding.h"
#include "training/loop.h"
#include "training/session.h"
#include "training/shards.h"
#include "transforms/pipeline.h"
#include "transforms/training/emit_update.h"
#include "transforms/training/loss_weight.h"

namespace autosp::cli {

using executor::Arrays;
using onnx_io::Manifest;
using Precisions = std::map<std::string, ir::DataType>;

namespace {

// The model as it is, trained by the same optimizer on one rank.
transforms::TrainingPlan unsharded(const transforms::TrainingPlan& plan) {
  transforms::TrainingPlan whole = plan;
  whole.zero = 0;
  whole.ranks = 1;
  whole.buckets.clear();
  return whole;
}

// The whole model's step; where micro-batches are accumulated, with what the loss is divided by.
std::shared_ptr<const ir::Graph> whole_step(const std::shared_ptr<const ir::Graph>& graph,
                                            const Manifest& manifest) {
  if (manifest.training->loss_weight.empty()) return graph;
  ir::Graph result =
      transforms::run_passes(*graph, {.passes = {"decompose_losses", "decompose_means"}});
  const auto weight = transforms::loss_weight(result, shard::detect_roles(result));
  if (!weight) {
    throw Error("the whole model's loss is no quotient, but the ranks' is")
        .note("micro-batches are weighed by what the loss is divided by")
        .help("validate with --accumulate 1");
  }
  result.add_output(kLossWeight, *weight);
  return std::make_shared<const ir::Graph>(std::move(result));
}

// One step's loss and gradients by their names.
Arrays named(StepReport report, const std::string& loss) {
  Arrays outputs = std::move(report.gradients);
  outputs[loss] = ir::Tensor::scalar(ir::DataType::kFloat64, report.loss);
  return outputs;
}

// Manifest of what is compared: loss as a double, gradients, or parameters instead of both.
Manifest compared(const Manifest& manifest, bool parameters) {
  Manifest result;
  if (!parameters) {
    result.outputs = manifest.outputs;
    return result;
  }
  const std::vector<std::string>& trained = manifest.training->parameters;
  for (const onnx_io::ManifestInput& input : manifest.inputs) {
    if (std::ranges::find(trained, input.name) == trained.end()) continue;
    result.outputs.push_back({.name = input.name, .type = input.type, .role = {}, .parameter = ""});
  }
  return result;
}

// What differs is worse than what is not finite, and that than what is equal, whatever its error.
bool is_worse(const TensorComparison& tensor, const TensorComparison& than) {
  if (tensor.agrees() != than.agrees()) return than.agrees();
  if (tensor.proves_nothing() != than.proves_nothing()) return tensor.proves_nothing();
  return tensor.relative_error() / tensor.tolerance > than.relative_error() / than.tolerance;
}

TrainingJob make_job(const Manifest& manifest, const ir::Graph& whole,
                     const CurveOptions& options) {
  TrainingRun run{.folder = options.folder, .data = options.feed};
  if (!options.feed.empty()) return prepare(run, 0);
  Arrays first = generate_feeds(whole, manifest, options.seed);
  const auto count = options.steps * manifest.training->accumulate;
  std::vector<Arrays> batches = {first};
  for (int64_t k = 1; k < count; ++k) {
    batches.push_back(generate_feeds(whole, manifest, options.seed + static_cast<uint64_t>(k)));
  }
  return prepare(run, 0, Batches(batches, with_initial_parameters(options.folder, {}), manifest));
}

// A parameter is as exact as its gradients are.
Precisions precisions_of_parameters(const Manifest& manifest, const Precisions& precision) {
  Precisions result;
  for (const onnx_io::ManifestOutput& output : manifest.outputs) {
    const auto found = precision.find(output.name);
    if (output.role != onnx_io::OutputRole::kGradient || found == precision.end()) continue;
    result[output.parameter] = found->second;
  }
  return result;
}

// What all of the trainings below share.
struct Training {
  const TrainingJob& job;
  const Manifest& manifest;
  std::string loss;  // the output's name
  const CurveOptions& options;

  // Of one step: the batches of all its micro-batches, as `make` gives them.
  std::vector<Arrays> micro_batches(int64_t step,
                                    const std::function<Arrays(int64_t batch)>& make) const {
    std::vector<Arrays> result;
    const int64_t count = job.plan.accumulate;
    for (int64_t k = 0; k < count; ++k) result.push_back(make((step - 1) * count + k));
    return result;
  }
};

std::string loss_name(const Manifest& manifest) {
  for (const onnx_io::ManifestOutput& output : manifest.outputs) {
    if (output.role == onnx_io::OutputRole::kLoss) return output.name;
  }
  return {};
}

// The whole model on one rank, from these parameters.
Trajectory train_whole(const Training& training, const std::shared_ptr<const ir::Graph>& whole,
                       const Arrays& state) {
  const TrainingJob& job = training.job;
  const transforms::TrainingPlan plan = unsharded(job.plan);
  const auto as_graph = [](ir::Graph graph) {
    return std::make_shared<const ir::Graph>(std::move(graph));
  };
  const TrainingGraphs graphs{
      .step = whole_step(whole, training.manifest),
      .accumulate = plan.accumulate > 1 ? as_graph(transforms::emit_accumulate(plan, 0)) : nullptr,
      .update = as_graph(transforms::emit_update(plan, 0))};
  const CurveOptions& options = training.options;
  Trajectory result;
  executor::run_world(1, options.timeout, [&](int, executor::Communicator& communicator) {
    const int workers = executor::default_blas_threads(1);
    executor::set_blas_threads(workers);
    RankTrainer trainer(graphs, plan, training.manifest, options.data_folder, communicator,
                        {.workers = workers});
    trainer.load(state);
    for (int64_t step = 1; step <= options.steps; ++step) {
      const std::vector<Arrays> batches =
          training.micro_batches(step, [&](int64_t batch) { return whole_batch(job, batch); });
      result.steps.push_back(named(trainer.step(batches, options.rate, step, true), training.loss));
    }
    result.parameters = trainer.whole_parameters();
  });
  return result;
}

struct RankCurves {
  std::vector<LossPoint> losses;
  std::vector<TensorComparison> worst;  // of every loss and gradient
  std::vector<int64_t> steps;           // where they are worst
  Differences differences;
  std::vector<Arrays> parameters;  // by rank, after the last step
  std::set<std::string> notices;
};

// What is worse than what was found at other steps takes its place.
void keep_worst(const std::vector<TensorComparison>& tensors, int64_t step, RankCurves& curves) {
  if (curves.worst.empty()) {
    curves.worst = tensors;
    curves.steps.assign(tensors.size(), step);
    return;
  }
  for (size_t k = 0; k < tensors.size(); ++k) {
    if (!is_worse(tensors[k], curves.worst[k])) continue;
    curves.worst[k] = tensors[k];
    curves.steps[k] = step;
  }
}

RankCurves train_ranks(const Training& training, const Trajectory& expected,
                       const Precisions& precision) {
  const auto& [job, manifest, loss, options] = training;
  const int ranks = static_cast<int>(manifest.ranks.size());
  const Manifest gradients = compared(manifest, false);
  RankCurves curves;
  for (const Arrays& step : expected.steps) {
    curves.losses.push_back({.whole = step.at(loss).value_as_double(0), .ranks = {}});
  }
  curves.parameters.resize(manifest.ranks.size());
  std::mutex mutex;
  executor::run_world(ranks, options.timeout, [&](int rank, executor::Communicator& communicator) {
    const int workers = executor::default_blas_threads(ranks);
    RankTrainer trainer(
        load_training_graphs(options.folder, manifest, job.plan, rank), job.plan, manifest,
        options.folder, communicator,
        {.workers = workers, .fuse = options.fuse, .backend = options.backend.get()});
    trainer.load(job.state);
    for (int64_t step = 1; step <= options.steps; ++step) {
      const std::vector<Arrays> batches = training.micro_batches(
          step, [&](int64_t batch) { return batch_feeds(job, batch, rank); });
      StepReport report = trainer.step(batches, options.rate, step, true);
      name_gradients(manifest, report.gradients, communicator);
      const auto losses = gather_numbers({report.loss}, "losses", communicator);
      const auto at = static_cast<size_t>(step - 1);
      const std::vector<Arrays> outputs = {named(std::move(report), loss)};
      auto tensors =
          compare_outputs(gradients, expected.steps[at], outputs, precision, options.tolerance);
      for (TensorComparison& tensor : tensors) {
        tensor.rank = rank;
        // Of a curve: the losses of later steps carry what the earlier updates differed by.
        if (tensor.role == onnx_io::OutputRole::kLoss) {
          constexpr double kLoss = 1e-4;
          tensor.tolerance = options.tolerance.value_or(std::max(kLoss, tensor.tolerance));
        }
      }
      const std::lock_guard lock(mutex);
      keep_worst(tensors, step, curves);
      note_differences(tensors, at, expected.steps[at], outputs[0], curves.differences);
      if (rank == 0) curves.losses[at].ranks = losses;
    }
    curves.parameters[static_cast<size_t>(rank)] = trainer.whole_parameters();
    const std::lock_guard lock(mutex);
    curves.notices.insert(trainer.notices().begin(), trainer.notices().end());
  });
  return curves;
}

}  // namespace

bool Curves::equal() const {
  return std::ranges::all_of(tensors, &TensorComparison::equal) &&
         std::ranges::all_of(parameters, &TensorComparison::equal);
}

Curves compare_curves(const std::shared_ptr<const ir::Graph>& whole, const Manifest& manifest,
                      const CurveOptions& options) {
  const TrainingJob job = make_job(manifest, *whole, options);
  const Training training{job, manifest, loss_name(manifest), options};
  const Trajectory expected = train_whole(training, whole, job.state);
  const RankCurves ranks = train_ranks(training, expected, precisions(*whole));

  Curves curves{.losses = ranks.losses,
                .tensors = ranks.worst,
                .steps = ranks.steps,
                .parameters = {},
                .notices = ranks.notices};
  curves.parameters =
      compare_outputs(compared(manifest, true), expected.parameters, ranks.parameters,
                      precisions_of_parameters(manifest, precisions(*whole)), options.tolerance);
  double largest = 0;
  for (const TensorComparison& tensor : curves.parameters) {
    largest = std::max(largest, tensor.scale);
  }
  constexpr double kFloor = 1e-3;  // of the largest parameter: others start at zero
  for (TensorComparison& tensor : curves.parameters) {
    tensor.scale = std::max(tensor.scale, kFloor * largest);
  }
  mark_rounding(job, expected, ranks.differences, ranks.parameters, curves);
  if (!curves.equal()) {
    mark_sensitive(expected, train_whole(training, whole, nudged(job.state)), ranks.differences,
                   curves);
  }
  return curves;
}

}  // namespace autosp::cli

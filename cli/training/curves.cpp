#include "training/curves.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <set>

#include "base/error.h"
#include "executor/openblas.h"
#include "executor/world.h"
#include "feeds.h"
#include "shard/roles.h"
#include "training/arguments.h"
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

void keep_worst(const std::vector<TensorComparison>& tensors, int64_t step, Curves& curves) {
  if (curves.tensors.empty()) {
    curves.tensors = tensors;
    curves.steps.assign(tensors.size(), step);
    return;
  }
  for (size_t k = 0; k < tensors.size(); ++k) {
    if (!is_worse(tensors[k], curves.tensors[k])) continue;
    curves.tensors[k] = tensors[k];
    curves.steps[k] = step;
  }
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

// A parameter whose gradient is next to nothing beside the largest, at every step, is moved by
// rounding; optimizers that divide by the gradient's size (adam) even move it as far as others.
struct Rounding {
  std::set<std::string> parameters;
  std::set<std::string> gradients;  // of these
  double most = 0;                  // the largest entry of all gradients
};
Rounding rounding_of(const Manifest& manifest, const std::vector<Arrays>& outputs) {
  constexpr double kNothing = 1e-5;
  Rounding result;
  std::map<const onnx_io::ManifestOutput*, double> largest;
  for (const onnx_io::ManifestOutput& output : manifest.outputs) {
    if (output.role != onnx_io::OutputRole::kGradient) continue;
    for (const Arrays& step : outputs) {
      const ir::Tensor& gradient = step.at(output.name);
      double& entry = largest[&output];
      for (int64_t i = 0; i < gradient.num_elements(); ++i) {
        entry = std::max(entry, std::abs(gradient.value_as_double(i)));
      }
      result.most = std::max(result.most, entry);
    }
  }
  for (const auto& [output, entry] : largest) {
    if (entry >= kNothing * result.most) continue;
    result.parameters.insert(output->parameter);
    result.gradients.insert(output->name);
  }
  return result;
}

// How far an entry of some parameter has moved at most.
double furthest_move(const TrainingJob& job, const Arrays& after) {
  double furthest = 0;
  for (const transforms::TrainedParameter& parameter : job.plan.parameters) {
    const ir::Tensor& from = job.state.at(parameter.name);
    const ir::Tensor& to = after.at(parameter.name);
    for (int64_t i = 0; i < from.num_elements(); ++i) {
      furthest = std::max(furthest, std::abs(to.value_as_double(i) - from.value_as_double(i)));
    }
  }
  return furthest;
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

}  // namespace

bool Curves::equal() const {
  return std::ranges::all_of(tensors, &TensorComparison::equal) &&
         std::ranges::all_of(parameters, &TensorComparison::equal);
}

Curves compare_curves(const std::shared_ptr<const ir::Graph>& whole, const Manifest& manifest,
                      const CurveOptions& options) {
  const TrainingJob job = make_job(manifest, *whole, options);
  std::string loss;
  for (const onnx_io::ManifestOutput& output : manifest.outputs) {
    if (output.role == onnx_io::OutputRole::kLoss) loss = output.name;
  }
  const auto batch_of = [&](int64_t step, int64_t micro_batch) {
    return (step - 1) * job.plan.accumulate + micro_batch;
  };
  const transforms::TrainingPlan whole_plan = unsharded(job.plan);
  const auto as_graph = [](ir::Graph graph) {
    return std::make_shared<const ir::Graph>(std::move(graph));
  };
  const TrainingGraphs whole_graphs{
      .step = whole_step(whole, manifest),
      .accumulate =
          job.plan.accumulate > 1 ? as_graph(transforms::emit_accumulate(whole_plan, 0)) : nullptr,
      .update = as_graph(transforms::emit_update(whole_plan, 0))};

  std::vector<Arrays> expected;
  Arrays whole_parameters;
  Curves curves;
  executor::run_world(1, options.timeout, [&](int, executor::Communicator& communicator) {
    const int workers = executor::default_blas_threads(1);
    executor::set_blas_threads(workers);
    RankTrainer trainer(whole_graphs, whole_plan, manifest, options.data_folder, communicator,
                        {.workers = workers});
    trainer.load(job.state);
    for (int64_t step = 1; step <= options.steps; ++step) {
      std::vector<Arrays> micro_batches;
      for (int64_t m = 0; m < job.plan.accumulate; ++m) {
        micro_batches.push_back(whole_batch(job, batch_of(step, m)));
      }
      expected.push_back(named(trainer.step(micro_batches, options.rate, step, true), loss));
      curves.losses.push_back({.whole = expected.back().at(loss).value_as_double(0), .ranks = {}});
    }
    whole_parameters = trainer.whole_parameters();
  });

  const int ranks = static_cast<int>(manifest.ranks.size());
  const Manifest gradients = compared(manifest, false);
  const auto precision = precisions(*whole);
  std::mutex mutex;
  std::vector<Arrays> rank_parameters(manifest.ranks.size());
  executor::run_world(ranks, options.timeout, [&](int rank, executor::Communicator& communicator) {
    const int workers = executor::default_blas_threads(ranks);
    RankTrainer trainer(load_training_graphs(options.folder, manifest, job.plan, rank), job.plan,
                        manifest, options.folder, communicator,
                        {.workers = workers, .backend = options.backend.get()});
    trainer.load(job.state);
    for (int64_t step = 1; step <= options.steps; ++step) {
      std::vector<Arrays> micro_batches;
      for (int64_t m = 0; m < job.plan.accumulate; ++m) {
        micro_batches.push_back(batch_feeds(job, batch_of(step, m), rank));
      }
      StepReport report = trainer.step(micro_batches, options.rate, step, true);
      name_gradients(manifest, report.gradients, communicator);
      const auto losses = gather_numbers({report.loss}, "losses", communicator);
      Arrays outputs = named(std::move(report), loss);
      const auto at = static_cast<size_t>(step - 1);
      const std::optional<double> tolerance = options.tolerance;
      auto tensors = compare_outputs(gradients, expected[at], {outputs}, precision, tolerance);
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
      if (rank == 0) curves.losses[at].ranks = losses;
    }
    rank_parameters[static_cast<size_t>(rank)] = trainer.whole_parameters();
  });
  curves.parameters =
      compare_outputs(compared(manifest, true), whole_parameters, rank_parameters,
                      precisions_of_parameters(manifest, precision), options.tolerance);
  const Rounding rounding = rounding_of(manifest, expected);
  constexpr double kRounding = 1e-6;  // of the largest gradient: what sums in float32 leave
  for (TensorComparison& tensor : curves.tensors) {
    tensor.is_rounding = rounding.gradients.contains(tensor.name) &&
                         tensor.largest_error <= kRounding * rounding.most;
  }
  double largest = 0;
  for (const TensorComparison& tensor : curves.parameters)
    largest = std::max(largest, tensor.scale);
  const double moved = furthest_move(job, whole_parameters);
  constexpr double kFloor = 1e-3;  // of the largest parameter: others start at zero
  for (TensorComparison& tensor : curves.parameters) {
    tensor.scale = std::max(tensor.scale, kFloor * largest);
    // There and back.
    tensor.is_rounding =
        rounding.parameters.contains(tensor.name) && tensor.largest_error <= 2 * moved;
  }
  return curves;
}

}  // namespace autosp::cli

#include "training/session.h"

#include <algorithm>

#include "base/error.h"
#include "executor/execute.h"
#include "onnx/model.h"
#include "ranks.h"
#include "reference/element_types.h"
#include "signature.h"
#include "training/arguments.h"
#include "training/shards.h"
#include "transforms/training/emit_update.h"

namespace autosp::cli {

using executor::Arrays;
using ir::Tensor;
using transforms::TrainedParameter;
using transforms::UpdateUnit;

namespace {

std::shared_ptr<const ir::Graph> load_signed(const std::filesystem::path& path,
                                             const onnx_io::Manifest& manifest, int64_t rank) {
  if (!std::filesystem::exists(path)) {
    throw Error("'{}' is missing", path.string())
        .note("the manifest beside it says that there is an update")
        .help("shard the model again");
  }
  auto graph = std::make_shared<ir::Graph>(onnx_io::import_model(path));
  const Signature found = signature_of(*graph).value_or(Signature());
  if (found.rank != std::to_string(rank) || found.plan != plan_signature(manifest)) {
    throw Error("'{}' does not belong to rank {} of this model", path.string(), rank)
        .note("its signature is another than the manifest's")
        .help("shard the model again: the folder holds files of different runs");
  }
  return graph;
}

Tensor float_scalar(double value) { return Tensor::scalar(ir::DataType::kFloat32, value); }

Tensor int_scalar(int64_t value) {
  Tensor tensor(ir::Type{ir::DataType::kInt64, {}});
  tensor.mutable_values<int64_t>()[0] = value;
  return tensor;
}

// Its elements in float32.
Tensor widened(const Tensor& tensor) {
  Tensor result(ir::Type{ir::DataType::kFloat32, tensor.shape()});
  const std::span<float> to = result.mutable_values<float>();
  for (int64_t k = 0; k < tensor.num_elements(); ++k) {
    to[static_cast<size_t>(k)] = static_cast<float>(tensor.value_as_double(k));
  }
  return result;
}

executor::Program compiled(const std::shared_ptr<const ir::Graph>& graph,
                           const TrainerOptions& options) {
  const executor::CompileOptions on_cpu{.workers = options.workers, .overlap = options.overlap};
  if (options.backend == nullptr) return executor::compile(graph, on_cpu);
  const executor::KernelTable kernels = executor::device_kernels(*options.backend);
  return executor::compile(graph, {.kernels = &kernels, .workers = options.workers});
}

// The graph's inputs among these arrays.
Arrays feeds_of(const ir::Graph& graph, std::initializer_list<const Arrays*> sources) {
  Arrays feeds;
  for (ValueId input : graph.inputs()) {
    const std::string& name = graph.name_of(input);
    for (const Arrays* arrays : sources) {
      const auto found = arrays->find(name);
      if (found == arrays->end()) continue;
      feeds[name] = found->second;
      break;
    }
  }
  return feeds;
}

}  // namespace

std::string whole_state_name(const std::string& state, const std::string& parameter) {
  return state + "/" + parameter;
}

TrainingGraphs load_training_graphs(const std::filesystem::path& folder,
                                    const onnx_io::Manifest& manifest,
                                    const transforms::TrainingPlan& plan, int64_t rank) {
  TrainingGraphs graphs;
  graphs.step = load_rank(folder, manifest, rank);
  graphs.update = load_signed(folder / update_file(rank), manifest, rank);
  if (plan.accumulate > 1) {
    graphs.accumulate = load_signed(folder / accumulate_file(rank), manifest, rank);
  }
  return graphs;
}

RankTrainer::RankTrainer(const TrainingGraphs& graphs, const transforms::TrainingPlan& plan,
                         const onnx_io::Manifest& manifest, std::filesystem::path data_folder,
                         executor::Communicator& communicator, const TrainerOptions& options)
    : plan_(plan),
      data_folder_(std::move(data_folder)),
      communicator_(communicator),
      device_(options.backend == nullptr
                  ? nullptr
                  : std::make_unique<executor::RankDevice>(*options.backend, communicator)),
      step_(compiled(graphs.step, options)),
      update_(compiled(graphs.update, options)),
      units_(transforms::update_units(plan, communicator.rank())) {
  if (graphs.accumulate) accumulate_ = compiled(graphs.accumulate, options);
  for (const onnx_io::ManifestOutput& output : manifest.outputs) {
    if (output.role == onnx_io::OutputRole::kLoss) loss_ = output.name;
  }
  const auto gives_weight = [](const ir::Output& output) { return output.name == kLossWeight; };
  if (std::ranges::any_of(graphs.step->outputs(), gives_weight)) loss_weight_ = kLossWeight;
}

void RankTrainer::load(const Arrays& whole) {
  const int rank = communicator_.rank();
  for (const TrainedParameter& parameter : plan_.parameters) {
    if (plan_.zero < 3) parameters_[parameter.name] = whole.at(parameter.name);
  }
  const auto parameter_array = [&](const std::string& name) -> const Tensor& {
    return whole.at(name);
  };
  for (const UpdateUnit& unit : units_) {
    const auto part = [&](const WholeArray& array) {
      return plan_.zero == 0 ? array(unit.name)
                             : shard_of(plan_, plan_.buckets[unit.index], rank, array);
    };
    if (plan_.zero == 3) parameters_[unit.name] = part(parameter_array);
    for (const std::string& state : transforms::state_names(plan_, unit.dtype)) {
      const ir::DataType dtype = transforms::update_dtype(unit.dtype);
      const auto name_of = [&](const std::string& name) { return whole_state_name(state, name); };
      const std::string first =
          plan_.zero == 0 ? unit.name
                          : plan_.parameter(plan_.buckets[unit.index].members.front()).name;
      Tensor value(ir::Type{dtype, unit.shape});
      if (whole.contains(name_of(first))) {
        value =
            part([&](const std::string& name) -> const Tensor& { return whole.at(name_of(name)); });
      } else if (state == transforms::kMaster) {
        value = widened(part(parameter_array));
      }
      states_[unit.name + "." + state] = value;
    }
  }
}

void RankTrainer::add_whole(const std::string& prefix, const UpdateUnit& unit, const Tensor& part,
                            Arrays& arrays) {
  if (plan_.zero == 0) {
    arrays[prefix + unit.name] = part;
    return;
  }
  const transforms::Bucket& bucket = plan_.buckets[unit.index];
  const Tensor flat = gather_shards(bucket, part, prefix + unit.name, communicator_);
  cut_bucket(
      plan_, bucket, flat,
      [&](const TrainedParameter& parameter) { return prefix + parameter.name; }, arrays);
}

Arrays RankTrainer::whole_parameters() {
  if (plan_.zero < 3) return parameters_;
  Arrays arrays;
  for (const UpdateUnit& unit : units_) add_whole("", unit, parameters_.at(unit.name), arrays);
  return arrays;
}

Arrays RankTrainer::whole_state() {
  Arrays arrays = whole_parameters();
  for (const UpdateUnit& unit : units_) {
    for (const std::string& state : transforms::state_names(plan_, unit.dtype)) {
      add_whole(whole_state_name(state, ""), unit, states_.at(unit.name + "." + state), arrays);
    }
  }
  return arrays;
}

Arrays RankTrainer::run(const executor::Program& program, const Arrays& feeds) {
  return executor::execute(program, feeds, communicator_,
                           {.data_folder = data_folder_, .device = device_.get()})
      .outputs;
}

double RankTrainer::number(const Arrays& outputs, const std::string& name) const {
  const auto found = outputs.find(name);
  return found == outputs.end() || found->second.num_elements() != 1
             ? 0
             : found->second.value_as_double(0);
}

// The sum of the gradients of all micro-batches, each times its weight; `loss` likewise.
Arrays RankTrainer::accumulate(const std::vector<Arrays>& micro_batches, double& loss,
                               double& weight) {
  Arrays sums;
  for (ValueId input : accumulate_->graph().inputs()) {
    const std::string& name = accumulate_->graph().name_of(input);
    if (name.ends_with(".sum")) sums[name] = Tensor(accumulate_->graph().type(input));
  }
  for (const Arrays& data : micro_batches) {
    const Arrays outputs = run(step_, feeds_of(step_.graph(), {&data, &parameters_}));
    const double share = loss_weight_.empty() ? 1 : number(outputs, loss_weight_);
    if (share != 0) loss += share * number(outputs, loss_);  // of no tokens the loss is NaN
    weight += share;
    const Arrays scalars = {{transforms::kWeight, float_scalar(share)}};
    const Arrays results =
        run(*accumulate_, feeds_of(accumulate_->graph(), {&scalars, &outputs, &sums}));
    for (auto& [name, sum] : sums) sum = results.at(name + ".new");
  }
  loss /= weight;
  return sums;
}

// By the names that the step's graph gives them; of micro-batches, the mean.
Arrays RankTrainer::mean_gradients(Arrays gradients, const Arrays& scalars) const {
  if (!accumulate_) return gradients;
  const double scale = number(scalars, transforms::kGradientScale);
  Arrays means;
  for (const UpdateUnit& unit : units_) {
    const Tensor& sum = gradients.at(unit.gradient + ".sum");
    Tensor mean(sum.type());
    reference::visit(reference::FloatTypes{}, sum.dtype(), [&]<typename T>(std::type_identity<T>) {
      const auto* from = reinterpret_cast<const T*>(sum.bytes().data());
      auto* to = reinterpret_cast<T*>(mean.mutable_bytes());
      for (int64_t i = 0; i < sum.num_elements(); ++i) {
        to[i] = reference::convert<T>(static_cast<double>(from[i]) * scale);
      }
    });
    means[unit.gradient] = mean;
  }
  return means;
}

StepReport RankTrainer::step(const std::vector<Arrays>& micro_batches, double rate, int64_t step,
                             bool keep_gradients) {
  const auto begin = executor::Clock::now();
  StepReport report;
  Arrays gradients;
  Arrays scalars = {{transforms::kLearningRate, float_scalar(rate)},
                    {transforms::kStep, int_scalar(step)}};
  if (accumulate_) {
    double weight = 0;
    gradients = accumulate(micro_batches, report.loss, weight);
    scalars[transforms::kGradientScale] = float_scalar(1 / weight);
  } else {
    gradients = run(step_, feeds_of(step_.graph(), {&micro_batches.front(), &parameters_}));
    report.loss = number(gradients, loss_);
  }
  const Arrays feeds = feeds_of(update_.graph(), {&scalars, &gradients, &states_, &parameters_});
  gradient_bytes_ = 0;
  for (const UpdateUnit& unit : units_) {
    for (const std::string& name : {unit.gradient, unit.gradient + ".sum"}) {
      const auto found = feeds.find(name);
      if (found != feeds.end()) gradient_bytes_ += found->second.type().num_bytes();
    }
  }
  const Arrays results = run(update_, feeds);
  for (Arrays* kept : {&parameters_, &states_}) {
    for (auto& [name, value] : *kept) value = results.at(name + ".new");
  }
  if (plan_.optimizer.clip_norm > 0) {
    report.gradient_norm = number(results, transforms::kGradientNorm);
  }
  if (keep_gradients) report.gradients = mean_gradients(std::move(gradients), scalars);
  report.seconds = std::chrono::duration<double>(executor::Clock::now() - begin).count();
  return report;
}

transforms::TrainingBytes RankTrainer::held_bytes() const {
  transforms::TrainingBytes bytes{.gradients = gradient_bytes_};
  for (const auto& [name, value] : parameters_) bytes.parameters += value.type().num_bytes();
  for (const auto& [name, value] : states_) bytes.optimizer_state += value.type().num_bytes();
  return bytes;
}

}  // namespace autosp::cli

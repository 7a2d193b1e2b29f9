#include "training/session.h"

#include <algorithm>
#include <set>
#include <string_view>

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

// What `from` gives of the inputs of `to`: "NAME.new" is the next NAME.
executor::KeptOutputs passed_on(const ir::Graph& from, const ir::Graph& to) {
  constexpr std::string_view kNext = ".new";
  std::set<std::string> inputs;
  for (ValueId input : to.inputs()) inputs.insert(to.name_of(input));
  executor::KeptOutputs keeps;
  for (const ir::Output& output : from.outputs()) {
    std::string name = output.name;
    if (name.ends_with(kNext)) name.resize(name.size() - kNext.size());
    if (inputs.contains(name)) keeps[output.name] = name;
  }
  return keeps;
}

// Inputs of a graph that are not among these.
std::set<std::string> inputs_but(const ir::Graph& graph, const std::set<std::string>& fed) {
  std::set<std::string> names;
  for (ValueId input : graph.inputs()) {
    if (!fed.contains(graph.name_of(input))) names.insert(graph.name_of(input));
  }
  return names;
}

std::vector<executor::Program> compiled(const std::vector<executor::Turn>& turns,
                                        const TrainerOptions& options) {
  executor::CompileOptions compile_options{
      .workers = options.workers, .fuse = options.fuse, .overlap = options.overlap};
  if (options.backend == nullptr) return executor::compile_turns(turns, compile_options);
  const executor::KernelTable kernels = executor::device_kernels(*options.backend);
  compile_options.kernels = &kernels;
  return executor::compile_turns(turns, compile_options);
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

std::vector<executor::Turn> training_turns(const TrainingGraphs& graphs) {
  const executor::KeptOutputs updated = passed_on(*graphs.update, *graphs.update);
  std::set<std::string> parameters;
  for (ValueId input : graphs.step->inputs()) {
    const std::string& name = graphs.step->name_of(input);
    if (updated.contains(name + ".new")) parameters.insert(name);
  }
  const ir::Graph& reader = graphs.accumulate ? *graphs.accumulate : *graphs.update;
  std::vector<executor::Turn> turns = {{graphs.step, parameters, passed_on(*graphs.step, reader)}};
  if (graphs.accumulate) {
    turns.push_back({graphs.accumulate, inputs_but(*graphs.accumulate, {transforms::kWeight}),
                     passed_on(*graphs.accumulate, *graphs.accumulate)});
  }
  turns.push_back({graphs.update,
                   inputs_but(*graphs.update, {transforms::kLearningRate, transforms::kStep,
                                               transforms::kGradientScale}),
                   updated});
  return turns;
}

RankTrainer::RankTrainer(const TrainingGraphs& graphs, const transforms::TrainingPlan& plan,
                         const onnx_io::Manifest& manifest, std::filesystem::path data_folder,
                         executor::Communicator& communicator, const TrainerOptions& options)
    : plan_(plan),
      communicator_(communicator),
      device_(options.backend == nullptr
                  ? nullptr
                  : std::make_unique<executor::RankDevice>(*options.backend, communicator)),
      accumulates_(graphs.accumulate != nullptr),
      programs_(compiled(training_turns(graphs), options)),
      units_(transforms::update_units(plan, communicator.rank())) {
  session_ = executor::make_session(
      programs_, communicator, {.data_folder = std::move(data_folder), .device = device_.get()});
  for (const onnx_io::ManifestOutput& output : manifest.outputs) {
    if (output.role == onnx_io::OutputRole::kLoss) loss_ = output.name;
  }
  const auto gives_weight = [](const ir::Output& output) { return output.name == kLossWeight; };
  if (std::ranges::any_of(graphs.step->outputs(), gives_weight)) loss_weight_ = kLossWeight;
}

void RankTrainer::keep(const std::string& name, const Tensor& value, Names& among) {
  AUTOSP_CHECK(update_program().kept_outputs().contains(name + ".new"),
               "the update leaves '{}' alone", name);
  among.insert(name);
  session_->keep(name, value);
}

void RankTrainer::load(const Arrays& whole) {
  const int rank = communicator_.rank();
  for (const TrainedParameter& parameter : plan_.parameters) {
    if (plan_.zero < 3) keep(parameter.name, whole.at(parameter.name), parameters_);
  }
  const auto parameter_array = [&](const std::string& name) -> const Tensor& {
    return whole.at(name);
  };
  for (const UpdateUnit& unit : units_) {
    const auto part = [&](const WholeArray& array) {
      return plan_.zero == 0 ? array(unit.name)
                             : shard_of(plan_, plan_.buckets[unit.index], rank, array);
    };
    if (plan_.zero == 3) keep(unit.name, part(parameter_array), parameters_);
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
      keep(unit.name + "." + state, value, states_);
    }
  }
}

// Of what this rank keeps of a unit under the name `kept`.
void RankTrainer::use_whole(const std::string& prefix, const UpdateUnit& unit,
                            const std::string& kept, const Use& use) {
  const Tensor part = session_->kept(kept);
  if (plan_.zero == 0) return use(prefix + unit.name, part);
  const transforms::Bucket& bucket = plan_.buckets[unit.index];
  Arrays members;
  cut_bucket(
      plan_, bucket, gather_shards(bucket, part, prefix + unit.name, communicator_),
      [&](const TrainedParameter& parameter) { return prefix + parameter.name; }, members);
  for (const auto& [name, array] : members) use(name, array);
}

void RankTrainer::for_each_parameter(const Use& use) {
  if (plan_.zero == 3) {
    for (const UpdateUnit& unit : units_) use_whole("", unit, unit.name, use);
  } else {
    for (const std::string& name : parameters_) use(name, session_->kept(name));
  }
}

void RankTrainer::for_each_state(const Use& use) {
  for (const UpdateUnit& unit : units_) {
    for (const std::string& state : transforms::state_names(plan_, unit.dtype)) {
      use_whole(whole_state_name(state, ""), unit, unit.name + "." + state, use);
    }
  }
}

Arrays RankTrainer::whole_parameters(bool wanted) {
  Arrays arrays;
  if (!wanted && plan_.zero < 3) return arrays;
  for_each_parameter([&](const std::string& name, const Tensor& array) {
    if (wanted) arrays[name] = array;
  });
  return arrays;
}

Arrays RankTrainer::whole_state(bool wanted) {
  Arrays arrays = whole_parameters(wanted);
  if (!wanted && plan_.zero == 0) return arrays;
  for_each_state([&](const std::string& name, const Tensor& array) {
    if (wanted) arrays[name] = array;
  });
  return arrays;
}

// Its outputs but for those that are kept.
Arrays RankTrainer::run(const executor::Program& program, const Arrays& feeds) {
  executor::RankResult result = session_->run(program, feeds);
  notices_.insert(result.notices.begin(), result.notices.end());
  return std::move(result.outputs);
}

double RankTrainer::number(const Arrays& outputs, const std::string& name) const {
  const auto found = outputs.find(name);
  return found == outputs.end() || found->second.num_elements() != 1
             ? 0
             : found->second.value_as_double(0);
}

// Forward and backward of all micro-batches; the sum of their gradients, each times its weight, is
// kept. Returns their loss, weighed likewise.
double RankTrainer::accumulate(const std::vector<Arrays>& micro_batches, double& weight) {
  for (const auto& [output, name] : sum_program().kept_outputs()) session_->keep_zeros(name);
  double loss = 0;
  for (const Arrays& data : micro_batches) {
    const Arrays outputs = run(step_program(), data);
    const double share = loss_weight_.empty() ? 1 : number(outputs, loss_weight_);
    if (share != 0) loss += share * number(outputs, loss_);  // of no tokens the loss is NaN
    weight += share;
    run(sum_program(), {{transforms::kWeight, float_scalar(share)}});
  }
  return loss / weight;
}

// By the names that the step's graph gives them.
Arrays RankTrainer::gradients() {
  Arrays gradients;
  for (const auto& [output, name] : step_program().kept_outputs()) {
    gradients[output] = session_->kept(name);
  }
  return gradients;
}

// Of micro-batches: their sums times `scale`.
Arrays RankTrainer::mean_gradients(double scale) {
  Arrays means;
  for (const UpdateUnit& unit : units_) {
    const Tensor sum = session_->kept(unit.gradient + ".sum");
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
  Arrays scalars = {{transforms::kLearningRate, float_scalar(rate)},
                    {transforms::kStep, int_scalar(step)}};
  if (accumulates_) {
    double weight = 0;
    report.loss = accumulate(micro_batches, weight);
    scalars[transforms::kGradientScale] = float_scalar(1 / weight);
    if (keep_gradients) {
      report.gradients = mean_gradients(number(scalars, transforms::kGradientScale));
    }
  } else {
    Arrays outputs = run(step_program(), micro_batches.front());
    report.loss = number(outputs, loss_);
    if (keep_gradients) {
      report.gradients = std::move(outputs);
      report.gradients.merge(gradients());
    }
  }
  gradient_bytes_ = 0;
  const executor::Program& leaves_gradients = accumulates_ ? sum_program() : step_program();
  for (const auto& [output, name] : leaves_gradients.kept_outputs()) {
    gradient_bytes_ += session_->kept_bytes(name);
  }
  const Arrays results = run(update_program(), scalars);
  if (plan_.optimizer.clip_norm > 0) {
    report.gradient_norm = number(results, transforms::kGradientNorm);
  }
  report.seconds = std::chrono::duration<double>(executor::Clock::now() - begin).count();
  return report;
}

int64_t RankTrainer::arena_bytes() const { return step_program().memory().arena; }

transforms::TrainingBytes RankTrainer::held_bytes() const {
  transforms::TrainingBytes bytes{.gradients = gradient_bytes_};
  for (const std::string& name : parameters_) bytes.parameters += session_->kept_bytes(name);
  for (const std::string& name : states_) bytes.optimizer_state += session_->kept_bytes(name);
  return bytes;
}

}  // namespace autosp::cli

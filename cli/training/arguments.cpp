#include "training/arguments.h"

#include <fmt/ranges.h>

#include <cmath>
#include <numeric>

#include "base/error.h"
#include "deepspeed_config.h"
#include "ir/operator_traits.h"
#include "prediction.h"
#include "training/runtime_optimizer.h"
#include "transforms/training/emit_update.h"
#include "transforms/training/loss_weight.h"

namespace autosp::cli {

using transforms::TrainingPlan;

namespace {

CLI::Validator number(double least, double most, const std::string& what) {
  return CLI::Validator(
      [=](const std::string& text) {
        double value = 0;
        const bool ok = CLI::detail::lexical_cast(text, value) && value >= least && value <= most;
        return ok ? std::string() : fmt::format("'{}' is not {}", text, what);
      },
      "NUMBER");
}

constexpr double kHuge = 1e30;

// A setting that some optimizers have.
struct OwnSetting {
  const char* option;
  double transforms::OptimizerSettings::*field;
  std::vector<std::string_view> optimizers;
};

const std::vector<OwnSetting>& own_settings() {
  using Settings = transforms::OptimizerSettings;
  static const std::vector<OwnSetting> kSettings = {
      {"--momentum", &Settings::momentum, {"sgd"}},
      {"--beta1", &Settings::beta1, {"adam", "adamw", "adamw_after"}},
      {"--beta2", &Settings::beta2, {"adam", "adamw", "adamw_after"}},
      {"--epsilon", &Settings::epsilon, {"adam", "adamw", "adamw_after", "adagrad"}},
      {"--weight-decay",
       &Settings::weight_decay,
       {"sgd", "adam", "adamw", "adamw_after", "adagrad"}},
  };
  return kSettings;
}

// The first of these options that is given; null where none is.
const OwnSetting* given_setting(const transforms::OptimizerSettings& settings,
                                const std::string& optimizer) {
  const transforms::OptimizerSettings defaults;
  for (const OwnSetting& own : own_settings()) {
    const bool is_known = std::ranges::find(own.optimizers, optimizer) != own.optimizers.end();
    if (!is_known && settings.*own.field != defaults.*own.field) return &own;
  }
  return nullptr;
}

}  // namespace

CLI::Validator learning_rate() { return number(0, kHuge, "a number from 0 to 1e30"); }

void add_training_options(CLI::App& command, TrainingArguments& arguments) {
  std::vector<std::string> names;
  for (const auto& row : transforms::optimizers()) names.emplace_back(row.name);
  const std::string group = "Training";
  command
      .add_option(
          "--optimizer", arguments.optimizer.name,
          fmt::format("Writes the update too, a graph per rank: {}", fmt::join(names, ", ")))
      ->type_name("NAME")
      ->group(group);
  command
      .add_option("--optimizer-model", arguments.optimizer_model,
                  "The same from ONNX Runtime's training artifacts: optimizer_model.onnx")
      ->type_name("FILE")
      ->group(group);
  command
      .add_option("--zero", arguments.zero,
                  "What ranks share out between them: 0 nothing, 1 optimizer state, 2 gradients "
                  "too, 3 parameters too")
      ->check(CLI::IsMember({"0", "1", "2", "3"}))
      ->type_name("STAGE")
      ->capture_default_str()
      ->group(group);
  command.add_option("--accumulate", arguments.accumulate, "Micro-batches per update")
      ->check(at_least_one())
      ->type_name("N")
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--clip-norm", arguments.optimizer.clip_norm,
                  "The most that the norm of all gradients together may be")
      ->check(number(0, kHuge, "a number from 0 on"))
      ->type_name("NORM")
      ->group(group);
  command.add_option("--momentum", arguments.optimizer.momentum, "Of sgd")
      ->check(number(0, 1, "a number from 0 to 1"))
      ->capture_default_str()
      ->group(group);
  // Attributes are float32: what rounds to 1 there corrects a bias of 0 / 0.
  const auto below_one =
      number(0, std::nextafter(1.0F, 0.0F), "a number from 0 to below 1, in float32");
  command.add_option("--beta1", arguments.optimizer.beta1, "Of adam and adamw")
      ->check(below_one)
      ->capture_default_str()
      ->group(group);
  command.add_option("--beta2", arguments.optimizer.beta2, "Of adam and adamw")
      ->check(below_one)
      ->capture_default_str()
      ->group(group);
  command.add_option("--epsilon", arguments.optimizer.epsilon, "Of adam, adamw and adagrad")
      ->check(number(0, kHuge, "a number from 0 on"))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--weight-decay", arguments.optimizer.weight_decay,
                  "Of adamw apart from the gradient; of the others added to it")
      ->check(number(0, kHuge, "a number from 0 on"))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--bucket", arguments.bucket,
                  "Gradients that are sent together, at most; at --zero 3 each goes alone")
      ->type_name("BYTES")
      ->capture_default_str()
      ->group(group);
}

namespace {

// What the configuration says, unless the option says the same or has its default.
template <typename T>
void adopt(const std::optional<T>& from, const T& without, T& to, const std::string& option,
           const std::string& key) {
  if (!from || *from == to) return;
  if (to != without) {
    throw Error("{} is {}, but {} of the DeepSpeed configuration is {}", option, to, key, *from)
        .note("both say how the same model is to be trained")
        .help("leave one of them out, or make them agree");
  }
  to = *from;
}

void adopt_deepspeed(const std::filesystem::path& path, TrainingArguments& arguments) {
  if (path.empty()) return;
  const DeepSpeedConfig config = read_deepspeed_config(path);
  const TrainingArguments defaults;
  transforms::OptimizerSettings& settings = arguments.optimizer;
  if (config.update.optimizer && arguments.optimizer_model.empty()) {
    const transforms::OptimizerSettings& from = *config.update.optimizer;
    adopt(std::optional(from.name), std::string(), settings.name, "--optimizer", "optimizer.type");
    const auto take = [&](double transforms::OptimizerSettings::*member, const char* option,
                          const char* key) {
      if (from.*member == defaults.optimizer.*member) return;
      adopt(std::optional(from.*member), defaults.optimizer.*member, settings.*member, option, key);
    };
    take(&transforms::OptimizerSettings::momentum, "--momentum", "optimizer.params.momentum");
    take(&transforms::OptimizerSettings::beta1, "--beta1", "optimizer.params.betas");
    take(&transforms::OptimizerSettings::beta2, "--beta2", "optimizer.params.betas");
    take(&transforms::OptimizerSettings::epsilon, "--epsilon", "optimizer.params.eps");
    take(&transforms::OptimizerSettings::weight_decay, "--weight-decay",
         "optimizer.params.weight_decay");
  }
  if (!arguments.wanted()) return;
  adopt(config.update.zero_stage, defaults.zero, arguments.zero, "--zero",
        "zero_optimization.stage");
  adopt(config.update.clip_norm, defaults.optimizer.clip_norm, settings.clip_norm, "--clip-norm",
        "gradient_clipping");
  adopt(config.accumulation, defaults.accumulate, arguments.accumulate, "--accumulate",
        "gradient_accumulation_steps");
}

void take_optimizer_model(TrainingArguments& arguments) {
  if (arguments.optimizer_model.empty()) return;
  if (!arguments.optimizer.name.empty()) {
    throw Error("--optimizer and --optimizer-model are both given")
        .note("either says how parameters are updated")
        .help("leave one of them out");
  }
  if (const OwnSetting* own = given_setting(arguments.optimizer, "")) {
    throw Error("{} is given beside --optimizer-model", own->option)
        .note("that model says how parameters are updated, with its own settings")
        .help("leave one of them out");
  }
  const double clip_norm = arguments.optimizer.clip_norm;
  arguments.optimizer = read_optimizer_model(arguments.optimizer_model);
  if (clip_norm > 0) arguments.optimizer.clip_norm = clip_norm;
  arguments.optimizer_model.clear();
}

void check_settings(const transforms::OptimizerSettings& settings) {
  transforms::find_optimizer(settings.name);
  const OwnSetting* own = given_setting(settings, settings.name);
  if (own == nullptr) return;
  throw Error("--optimizer {} has no {}", settings.name, own->option)
      .note(fmt::format("that is an option of {}", fmt::join(own->optimizers, ", ")))
      .help("leave it out, or give one of these");
}

void check_nothing_given(const TrainingArguments& arguments) {
  const TrainingArguments defaults;
  const OwnSetting* own = given_setting(arguments.optimizer, "");
  const char* given = own != nullptr                                ? own->option
                      : arguments.bucket != defaults.bucket         ? "--bucket"
                      : arguments.zero != defaults.zero             ? "--zero"
                      : arguments.accumulate != defaults.accumulate ? "--accumulate"
                      : arguments.optimizer.clip_norm > 0           ? "--clip-norm"
                                                                    : nullptr;
  if (given == nullptr) return;
  throw Error("{} is given without an optimizer", given)
      .note("without --optimizer a rank graph is a step: loss and gradients, and no update")
      .help("add --optimizer, for example --optimizer adamw");
}

}  // namespace

void settle(TrainingArguments& arguments, const std::filesystem::path& deepspeed_config) {
  adopt_deepspeed(deepspeed_config, arguments);
  take_optimizer_model(arguments);
  if (arguments.wanted()) {
    check_settings(arguments.optimizer);
  } else {
    check_nothing_given(arguments);
  }
}

void add_loss_weight(const TrainingArguments& arguments, LoadedModel& model) {
  if (!arguments.wanted() || arguments.accumulate == 1) return;
  const auto weight = transforms::loss_weight(model.graph, model.roles);
  if (weight) model.graph.add_output(kLossWeight, *weight);
}

namespace {

// Update and checkpoints hold parameters by their names, beside scalars of their own.
void check_names(const TrainingPlan& plan) {
  const std::string_view taken[] = {transforms::kLearningRate, transforms::kStep,
                                    transforms::kGradientScale};
  for (const transforms::TrainedParameter& parameter : plan.parameters) {
    if (std::ranges::find(taken, parameter.name) == std::end(taken)) continue;
    throw Error("there is no update for a parameter that is named '{}'", parameter.name)
        .note(fmt::format("inputs of the update are named {}", fmt::join(taken, ", ")))
        .help("give the parameter another name, or shard without --optimizer");
  }
}

}  // namespace

std::shared_ptr<const transforms::Exchange> plan_training(const TrainingArguments& arguments,
                                                          const transforms::SpmdProgram& program) {
  if (!arguments.wanted()) return nullptr;
  auto exchange = std::make_shared<const transforms::Exchange>(
      transforms::plan_exchange(program, arguments.optimizer, arguments.zero,
                                parse_bytes(arguments.bucket, "--bucket"), arguments.accumulate));
  check_names(exchange->plan);
  return exchange;
}

namespace {

void add_update_collectives(const TrainingPlan& plan, onnx_io::Manifest& manifest) {
  const ir::Graph update = transforms::emit_update(plan, 0);
  for (const ir::Node& node : update.nodes()) {
    if (!ir::is_collective(node)) continue;
    const int64_t bytes = update.type(node.inputs[0]).num_bytes();
    const int64_t kept = update.type(node.outputs[0]).num_bytes();
    const transforms::StepKind kind = node.op == "AllGather" ? transforms::StepKind::kAllGather
                                      : node.op == "ReduceScatter"
                                          ? transforms::StepKind::kReduceScatter
                                          : transforms::StepKind::kAllReduce;
    onnx_io::ManifestCollective entry{.node = node.name,
                                      .kind = std::string(transforms::name_of(kind)),
                                      .value = node.name.substr(0, node.name.find('@')),
                                      .mesh_axes = {},
                                      .group_size = plan.ranks,
                                      .bytes_per_rank = 0,
                                      .phase = onnx_io::Phase::kUpdate,
                                      .purpose = onnx_io::Purpose::kGradient};
    for (const onnx_io::ManifestAxis& axis : manifest.mesh) {
      if (axis.size > 1) entry.mesh_axes.push_back(axis.name);
    }
    if (node.op == "AllGather") {
      entry.bytes_per_rank = bytes * (plan.ranks - 1);  // rank 0 has the largest shard
      entry.purpose = onnx_io::Purpose::kParameter;
    } else if (node.op == "ReduceScatter") {
      // Most is sent by the rank with the smallest shard, the last.
      const auto sizes = node.attributes.get_ints("sizes");
      entry.bytes_per_rank = bytes - kept / std::max<int64_t>(sizes.front(), 1) * sizes.back();
    } else {
      entry.bytes_per_rank = 2 * bytes * (plan.ranks - 1) / plan.ranks;
    }
    manifest.collectives.push_back(std::move(entry));
  }
}

}  // namespace

void describe_training(const transforms::SpmdProgram& program, onnx_io::Manifest& manifest) {
  if (program.exchange == nullptr) return;
  const TrainingPlan& plan = program.exchange->plan;
  const transforms::OptimizerSettings& settings = plan.optimizer;
  onnx_io::ManifestTraining training{.optimizer = settings.name,
                                     .settings = {{"momentum", settings.momentum},
                                                  {"beta1", settings.beta1},
                                                  {"beta2", settings.beta2},
                                                  {"epsilon", settings.epsilon},
                                                  {"weight_decay", settings.weight_decay},
                                                  {"clip_norm", settings.clip_norm}},
                                     .zero = plan.zero,
                                     .accumulate = plan.accumulate,
                                     .parameters = {},
                                     .group = {},
                                     .buckets = {},
                                     .bytes = {},
                                     .loss_weight = ""};
  for (const auto& parameter : plan.parameters) training.parameters.push_back(parameter.name);
  for (int64_t rank = 0; rank < plan.ranks; ++rank) {
    training.group.push_back(rank);
    const transforms::TrainingBytes bytes = transforms::training_bytes(plan, rank);
    training.bytes.push_back({bytes.parameters, bytes.gradients, bytes.optimizer_state});
  }
  for (const transforms::Bucket& bucket : plan.buckets) {
    onnx_io::ManifestBucket& entry = training.buckets.emplace_back();
    entry.name = bucket.name;
    entry.cuts = bucket.cuts;
    for (const auto& member : bucket.members)
      entry.parameters.push_back(plan.parameter(member).name);
  }
  for (const ir::Output& output : program.graph().outputs()) {
    if (output.name == kLossWeight) training.loss_weight = kLossWeight;
  }
  add_update_collectives(plan, manifest);
  manifest.training = std::move(training);
}

std::string update_file(int64_t rank) { return fmt::format("optimizer_rank_{}.onnx", rank); }
std::string accumulate_file(int64_t rank) { return fmt::format("accumulate_rank_{}.onnx", rank); }

}  // namespace autosp::cli

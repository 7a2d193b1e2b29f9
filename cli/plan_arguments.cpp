// How many ranks, from the command line or a DeepSpeed configuration, and the plan for them.
#include <cstdio>

#include "base/context.h"
#include "base/error.h"
#include "deepspeed_config.h"
#include "model_arguments.h"

namespace autosp::cli {

int64_t PlanArguments::ranks() const {
  if (sp) return *sp;
  int64_t product = 1;
  for (const auto& [axis, size] : parse_counts(sp_mesh, "--sp-mesh")) product *= size;
  return product;
}

namespace {

// Whether the command is one that writes or plans the update, and there is an optimizer.
bool writes_update(const CLI::App& command, const DeepSpeedConfig& config) {
  const CLI::Option* const optimizer = command.get_option_no_throw("--optimizer");
  if (optimizer == nullptr) return false;
  return config.update.optimizer || optimizer->count() > 0 ||
         command.count("--optimizer-model") > 0;
}

// Once all options are known.
void apply_config(const CLI::App& command, PlanArguments& arguments) {
  const std::filesystem::path& path = arguments.deepspeed_config;
  if (path.empty()) return;
  const DeepSpeedConfig config = read_deepspeed_config(path);
  const bool has_sp = arguments.sp || !arguments.sp_mesh.empty();
  const bool has_dp = command.count("--dp") > 0;
  const StepDivision division =
      divide_step(config, path, has_sp ? std::optional(arguments.ranks()) : std::nullopt,
                  has_dp ? std::optional(arguments.dp) : std::nullopt);
  if (arguments.sp_mesh.empty()) arguments.sp = division.sp;
  arguments.dp = division.dp.value_or(arguments.dp);
  arguments.batch = division.batch;
  std::vector<std::string> unused = config.unused;
  if (!writes_update(command, config)) {
    unused.insert(unused.end(), config.update.keys.begin(), config.update.keys.end());
  }
  if (!unused.empty()) {
    fmt::print(stderr, "note: of '{}', these are left to the training: {}\n", path.string(),
               fmt::join(unused, ", "));
  }
}

}  // namespace

void add_plan_options(CLI::App& command, PlanArguments& arguments) {
  command
      .add_option(
          "--sp", arguments.sp,
          "Ranks that share one sequence; 1, or what --sp-mesh multiplies to, when left out")
      ->check(at_least_one())
      ->type_name("N");
  command.add_option("--dp", arguments.dp, "Ranks that share the batch (times --sp ranks in all)")
      ->check(at_least_one())
      ->type_name("M")
      ->capture_default_str();
  command
      .add_option(
          "--sp-mesh", arguments.sp_mesh,
          "How sp is divided: u over KV heads, g over query heads of a KV head, r over query "
          "positions (context parallelism: see --ring), as in --sp-mesh u=4,g=2,r=2; chosen when "
          "left out")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("AXIS=SIZE");
  command
      .add_option("--ring", arguments.ring,
                  "How attention on the axis r sees all keys: off: it gathers keys and values; on: "
                  "they travel from rank to rank (ring attention), so that no rank ever has more "
                  "than two blocks of others' keys; zigzag: besides, under causal masks each rank "
                  "attends for early and late positions, dealt out before attention and returned "
                  "behind it, so that all have as much to do; auto: they travel where that saves a "
                  "fifth of a rank's memory, in the order whose predicted step is shorter")
      ->check(CLI::IsMember({"off", "on", "zigzag", "auto"}))
      ->capture_default_str();
  command
      .add_option("--deepspeed-config", arguments.deepspeed_config,
                  "A DeepSpeed configuration: sequence_parallel_size is --sp, the batch sizes give "
                  "--dp; optimizer, ZeRO stage, clipping and accumulation are --optimizer and what "
                  "belongs to it. What it says besides is named and left alone")
      ->type_name("JSON");
  command.parse_complete_callback([&command, &arguments] { apply_config(command, arguments); });
  command.add_flag("--strict", arguments.strict,
                   "Refuses operators that can be neither split nor exchanged, instead of warning");
}

namespace {

void check_batch(const LoadedModel& model, const PlanArguments& arguments) {
  if (!arguments.batch) return;
  for (const shard::DimTag& tag : model.roles.batch) {
    const int64_t extent = model.graph.shape(tag.value)[static_cast<size_t>(tag.dim)];
    if (extent == *arguments.batch) continue;
    throw Error("'{}' has a batch of {}, but '{}' means {} samples in a step", model.path.string(),
                extent, arguments.deepspeed_config.string(), *arguments.batch)
        .note(fmt::format("axis {} of '{}'; a step takes train_micro_batch_size_per_gpu samples "
                          "for each of {} data-parallel replicas",
                          tag.dim, model.graph.name_of(tag.value), arguments.dp))
        .help("export the model with that batch, bind it with --dim, or change the configuration");
  }
}

}  // namespace

shard::PlanOptions plan_options(const PlanArguments& arguments) {
  return {.sp = arguments.ranks(),
          .dp = arguments.dp,
          .sp_mesh = parse_counts(arguments.sp_mesh, "--sp-mesh"),
          .strict = arguments.strict,
          .ring = arguments.ring == "on" || arguments.ring == "zigzag",
          .zigzag = arguments.ring == "zigzag"};
}

shard::Plan plan_model(const LoadedModel& model, const PlanArguments& arguments) {
  check_batch(model, arguments);
  return with_context(
      fmt::format("while planning '{}' for --sp {} --dp {}", model.path.string(), arguments.ranks(),
                  arguments.dp),
      "'autosp-onnx inspect MODEL' shows the sequence, the heads and what limits sp",
      [&] { return shard::make_plan(model.graph, model.roles, plan_options(arguments)); });
}

}  // namespace autosp::cli

// autosp-onnx shard MODEL --sp N -o OUT
#include <cstdio>
#include <map>
#include <memory>

#include "base/error.h"
#include "command.h"
#include "depfile.h"
#include "make_manifest.h"
#include "model_arguments.h"
#include "onnx/atomic_file.h"
#include "onnx/manifest_length.h"
#include "open_sequence.h"
#include "output_file.h"
#include "prediction.h"
#include "ranks.h"
#include "recompute_arguments.h"
#include "ring_choice.h"
#include "sharded_folder.h"
#include "training/arguments.h"
#include "transforms/ring_attention/ring.h"

namespace autosp::cli {

namespace {

constexpr const char* kFooter = R"(
Writes OUT/rank_<k>.onnx, one graph per rank, and OUT/manifest.json, which says what each rank is
fed and lists every collective. OUT appears complete or not at all.

Examples:
  autosp-onnx shard model.onnx --sp 4 -o out
  autosp-onnx shard model.onnx --dim seq=4096 --sp 4 --dp 2 -o out      8 ranks
  autosp-onnx shard model.onnx --sp 4 -o out --optimizer adamw --zero 1   then: autosp-onnx train
  autosp-onnx shard model.onnx --dim seq=dynamic:4096 --sp 4 -o out     any length that is a multiple
                                                                        of 4, planned for 4096
  autosp-onnx shard model.onnx --sp 4 -o out --dialect standard         OUT/emulated.onnx, which any
                                                                        ONNX runtime can run)";

constexpr int64_t kLargestSeed = int64_t{1} << 53;  // what the manifest holds exactly

struct Arguments {
  ModelArguments model;
  PassArguments passes;
  PlanArguments plan;
  RecomputeArguments recompute;
  TrainingArguments training;
  std::string device = "h100";
  std::filesystem::path out;
  std::filesystem::path depfile;
  std::vector<std::string> dialects = {"autosp"};
  bool annotate = false;
  bool json = false;
};

std::set<Dialect> dialects_of(const Arguments& arguments) {
  std::set<Dialect> dialects;
  for (const std::string& name : arguments.dialects) dialects.insert(parse_dialect(name));
  return dialects;
}

std::string shape_text(const ir::Shape& shape) {
  return fmt::format("{}", fmt::join(shape, " x "));
}

void print_inputs(const onnx_io::Manifest& manifest) {
  for (const onnx_io::ManifestInput& input : manifest.inputs) {
    if (input.role != onnx_io::InputRole::kData) continue;
    std::string text = "whole on every rank";
    if (!input.slices.empty()) {
      text.clear();
      for (const auto& slice : input.slices) {
        text += (text.empty() ? "" : ", ") + shape_text(slice.extent);
      }
    }
    fmt::print("  {:<20} {:<14} {}\n", input.name, shape_text(input.type.shape), text);
  }
}

// One line per kind of collective and phase.
void print_collectives(const onnx_io::Manifest& manifest) {
  struct Row {
    int64_t count = 0;
    int64_t bytes = 0;
  };
  std::map<std::tuple<onnx_io::Phase, std::string, onnx_io::Purpose>, Row> rows;
  for (const auto& entry : manifest.collectives) {
    Row& row = rows[{entry.phase, entry.kind, entry.purpose}];
    ++row.count;
    row.bytes += entry.bytes_per_rank;
  }
  fmt::print("collectives (bytes that a rank sends)\n");
  for (const auto& [key, row] : rows) {
    const auto& [phase, kind, purpose] = key;
    fmt::print("  {:<9} {:<15} {:<9} {:>5}  {:>12}\n", name_of(phase), kind, name_of(purpose),
               row.count, format_bytes(static_cast<double>(row.bytes)));
  }
  const onnx_io::ManifestTotals totals = manifest.totals();
  fmt::print("  {:<35} {:>5}  {:>12}\n", "total", totals.collectives,
             format_bytes(static_cast<double>(totals.bytes_per_rank)));
}

void print_training(const onnx_io::Manifest& manifest) {
  if (!manifest.training) return;
  const onnx_io::ManifestTraining& training = *manifest.training;
  fmt::print("training {}, zero {}: {} parameters; kept between steps (rank with most)\n",
             training.optimizer, training.zero, training.parameters.size());
  const auto most = [&](int64_t onnx_io::ManifestBytes::*field) {
    int64_t bytes = 0;
    for (const auto& rank : training.bytes) bytes = std::max(bytes, rank.*field);
    return format_bytes(static_cast<double>(bytes));
  };
  fmt::print("  parameters {}, gradients {}, optimizer state {}\n",
             most(&onnx_io::ManifestBytes::parameters), most(&onnx_io::ManifestBytes::gradients),
             most(&onnx_io::ManifestBytes::optimizer_state));
}

void print_lengths(const onnx_io::Manifest& manifest) {
  if (!manifest.open_length) return;
  fmt::print("  '{}' is open: {}; planned for {}, which figures below are of\n",
             manifest.open_length->dim, onnx_io::allowed_lengths(*manifest.open_length),
             manifest.open_length->planned);
}

void print_report(const shard::Plan& plan, const transforms::ZigzagUse& ring,
                  const onnx_io::Manifest& manifest, const std::filesystem::path& out) {
  fmt::print("{} over {}: {}\n", manifest.model_name, count_of_ranks(manifest.ranks.size()),
             plan.mesh.to_string());
  for (const std::string& reason : plan.roles.reasons) fmt::print("  {}\n", reason);
  if (ring.rings > 0) {
    fmt::print("  keys and values travel around a ring over axis r{}\n",
               ring.zigzag == 0 ? ""
                                : fmt::format(", {} of {} attention operators in zigzag order",
                                              ring.zigzag, ring.rings));
  }
  print_lengths(manifest);
  fmt::print("data inputs, and each rank's slice\n");
  print_inputs(manifest);
  print_collectives(manifest);
  fmt::print("recompute {}: {} operators again, {} kept for the backward pass\n",
             manifest.recompute.policy, manifest.recompute.operators,
             format_bytes(static_cast<double>(manifest.recompute.kept_bytes)));
  print_training(manifest);
  for (const std::string& warning : manifest.warnings) {
    fmt::print(stderr, "warning: {}\n", warning);
  }
  fmt::print("wrote {}\n", out.string());
}

using Files = std::vector<std::filesystem::path>;

// What the depfile is to name; it must be none of these itself.
Files dependencies(const Arguments& arguments) {
  if (arguments.depfile.empty()) return {};
  Files files =
      files_read(arguments.model.model, {arguments.device, arguments.plan.deepspeed_config});
  const std::filesystem::path& optimizer = arguments.training.optimizer_model;
  if (!optimizer.empty()) files.push_back(std::filesystem::absolute(optimizer));
  std::vector<InputFile> inputs;
  for (const std::filesystem::path& file : files) inputs.push_back({"shard", file});
  check_output_files({{.option = "--depfile", .path = arguments.depfile}}, inputs);
  return files;
}

// The manifest stands for the folder: it is there when everything is.
void write_depfile(const Arguments& arguments, const Files& files) {
  if (arguments.depfile.empty()) return;
  const std::string rule = depfile_rule(arguments.out / onnx_io::kManifestFile, files);
  write_output_file(arguments.depfile,
                    [&](const std::filesystem::path& to) { onnx_io::write_file(to, rule); });
}

int finish(const Arguments& arguments, const Files& files, const shard::Plan& plan,
           const transforms::ZigzagUse& ring, const onnx_io::Manifest& manifest) {
  write_depfile(arguments, files);
  if (arguments.json) {
    fmt::print("{}", onnx_io::to_json(manifest));
  } else {
    print_report(plan, ring, manifest, arguments.out);
  }
  return 0;
}

void check_open(const Arguments& arguments, const std::set<Dialect>& dialects, const OpenDim& dim) {
  std::string option;
  if (dialects.contains(Dialect::kOnnxRuntime)) option = "--dialect ort";
  if (dialects.contains(Dialect::kTensorRt)) option = "--dialect tensorrt";
  if (arguments.annotate) option = "--annotate";
  if (arguments.training.wanted()) option = "--optimizer";
  const std::string& ring = arguments.plan.ring;
  if (ring == "on" || ring == "zigzag") option = "--ring " + ring;
  if (option.empty()) return;
  throw Error("{} takes no open length, as --dim {}=dynamic asks for", option, dim.name)
      .note(
          "graphs for every length are written in the dialects autosp and standard, unannotated, "
          "without updates and without rings")
      .help(fmt::format("give the length (--dim {}=N), or leave {} out", dim.name, option));
}

int run_open(const Arguments& arguments, const OpenDim& dim) {
  const std::set<Dialect> dialects = dialects_of(arguments);
  check_open(arguments, dialects, dim);
  const Files files = dependencies(arguments);
  const OpenSharding sharding({.model = arguments.model,
                               .passes = arguments.passes,
                               .plan = arguments.plan,
                               .recompute = arguments.recompute,
                               .device = arguments.device,
                               .dim = dim,
                               .dialects = dialects});
  const Graphs graphs{
      .of = [&](Dialect dialect, int64_t rank) { return sharding.graph(dialect, rank); },
      .annotated = {},
      .training = nullptr};
  write_folder(sharding.model(), graphs, sharding.manifest(), dialects, arguments.out);
  return finish(arguments, files, sharding.plan(), {}, sharding.manifest());
}

// Updates are written once, for all dialects: with our collectives, which the others do not know.
void check_update(const std::set<Dialect>& dialects, const onnx_io::Manifest& manifest) {
  const bool is_foreign =
      dialects.contains(Dialect::kOnnxRuntime) || dialects.contains(Dialect::kTensorRt);
  const auto exchange = std::ranges::find(manifest.collectives, onnx_io::Phase::kUpdate,
                                          &onnx_io::ManifestCollective::phase);
  if (!is_foreign || exchange == manifest.collectives.end()) return;
  const char* name = dialects.contains(Dialect::kOnnxRuntime) ? "ort" : "tensorrt";
  throw Error("--dialect {} has no update at --zero {}: '{}' is a collective", name,
              manifest.training->zero, exchange->node)
      .note("updates have collectives in the dialect autosp only")
      .help(fmt::format("add --zero 0, whose update has none, or leave --dialect {} out", name));
}

// Rings send pieces of several sizes, which the collectives of other runtimes do not.
void settle_ring(Arguments& arguments, const std::set<Dialect>& dialects) {
  const bool ort = dialects.contains(Dialect::kOnnxRuntime);
  if (!ort && !dialects.contains(Dialect::kTensorRt)) return;
  if (arguments.plan.ring == "auto") arguments.plan.ring = "off";
  if (arguments.plan.ring == "off") return;
  const char* name = ort ? "ort" : "tensorrt";
  throw Error("--dialect {} has no ring, as --ring {} asks for", name, arguments.plan.ring)
      .note("a ring's exchanges have pieces of several sizes")
      .help(fmt::format("leave --ring {} or --dialect {} out", arguments.plan.ring, name));
}

int run(Arguments arguments) {
  settle(arguments.training, arguments.plan.deepspeed_config);
  arguments.model.train = arguments.training.wanted();
  if (const auto open = take_open_dim(arguments.model)) return run_open(arguments, *open);
  settle_ring(arguments, dialects_of(arguments));
  const Files files = dependencies(arguments);
  LoadedModel model = load_model(arguments.model, arguments.passes);
  add_loss_weight(arguments.training, model);
  const cost::Device device = load_device(arguments.device);
  const shard::Plan plan =
      plan_model(model, with_ring_chosen(arguments.plan, model, arguments.recompute, device));
  const transforms::SpmdProgram kept = transforms::build_program(plan);
  const RecomputedProgram recomputed =
      with_recompute(kept, arguments.recompute, device, memory_of_this_machine(kept));
  transforms::SpmdProgram program = recomputed.program;
  program.exchange = plan_training(arguments.training, program);
  onnx_io::Manifest manifest = make_manifest(model, program);
  manifest.recompute = recomputed.summary;
  check_update(dialects_of(arguments), manifest);
  write_folder(model, graphs_of(program, arguments.annotate), manifest, dialects_of(arguments),
               arguments.out);
  return finish(arguments, files, plan, transforms::zigzag_use(program), manifest);
}

}  // namespace

void add_shard(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("shard", "Splits a training graph over ranks");
  command->footer(kFooter);
  add_model_options(*command, arguments->model);
  add_plan_options(*command, arguments->plan);
  add_recompute_options(*command, arguments->recompute);
  add_training_options(*command, arguments->training);
  command
      ->add_option("--device", arguments->device,
                   "Whose rates price recomputation under a budget: h100, h200, a100, cpu, or a "
                   "JSON file")
      ->type_name("DEVICE")
      ->capture_default_str();
  command->add_option("-o,--output", arguments->out, "The folder to write")
      ->required()
      ->type_name("OUT");
  command
      ->add_option(
          "--dialect", arguments->dialects,
          "autosp: a graph per rank, for this program and, with its library, ONNX Runtime; ort, "
          "tensorrt: OUT/rank_<k>.ort.onnx, .tensorrt.onnx with the collectives of ONNX Runtime or "
          "TensorRT; standard: every rank in OUT/emulated.onnx, collectives as standard operators. "
          "Several with commas")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember(dialect_names()))
      ->capture_default_str();
  command->add_flag("--annotate", arguments->annotate,
                    "Also writes OUT/annotated.onnx, the whole graph with the plan as ONNX's "
                    "sharding annotations (file format 11), and puts these into rank graphs");
  command
      ->add_option("--depfile", arguments->depfile,
                   "Writes which files the result depends on, as make and ninja read it")
      ->type_name("FILE");
  command->add_flag("--json", arguments->json, "Prints the manifest instead of the report");
  command
      ->add_option("--seed", arguments->model.seed,
                   "Of dropout and other random operators that have none of their own")
      ->check(at_most(kLargestSeed))
      ->capture_default_str();
  add_pass_options(*command, arguments->passes);
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace autosp::cli

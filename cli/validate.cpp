// autosp-onnx validate MODEL OUT: is the sharded model the same computation?
#include <algorithm>
#include <cstdio>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "command.h"
#include "compare.h"
#include "diagnose.h"
#include "executor/openblas.h"
#include "executor/run.h"
#include "feeds.h"
#include "json_text.h"
#include "model_arguments.h"
#include "onnx/manifest.h"
#include "ranks.h"
#include "run_device.h"
#include "training/arguments.h"
#include "training/curves.h"
#include "training/shards.h"
#include "whole_model.h"

namespace autosp::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFooter = R"(
Runs the whole model and the ranks on the same inputs and compares the loss and every gradient on
every rank. With --device the ranks run there, the whole model on the CPU; with --fuse the ranks are fused, the whole
model is not. Errors are relative to the largest entry of each tensor. A gradient that differs is run in
float64 too: where it is zero there, both sides hold rounding, and count as equal. A loss or gradient that is NaN
or infinite in the whole model is reported as such and never counts as equal. Where results differ, known
faults of sequence parallelism are tried on the whole model, and the one that gives the ranks' numbers is named.

Examples:
  autosp-onnx validate model.onnx out                       on generated inputs
  autosp-onnx validate model.onnx out --feed inputs.npz --all
  autosp-onnx validate model.onnx out --steps 5             training curves, after shard --optimizer
Exit code 1 means that something differs or is not finite; the first such tensor is named.)";

struct Arguments {
  std::filesystem::path model;
  std::filesystem::path folder;
  FeedArguments inputs;
  RunDevice device;
  std::optional<int64_t> step;
  std::optional<double> tolerance;
  double timeout = 60;
  int64_t steps = 0;
  double rate = 1e-3;
  bool all = false;
  bool json = false;
};

double loss_of(const executor::Arrays& outputs, const onnx_io::Manifest& manifest) {
  for (const onnx_io::ManifestOutput& output : manifest.outputs) {
    if (output.role != onnx_io::OutputRole::kLoss) continue;
    const auto found = outputs.find(output.name);
    if (found != outputs.end()) return found->second.value_as_double(0);
  }
  return 0;
}

Json to_json(const TensorComparison& tensor) {
  return {{"name", tensor.name},
          {"role", name_of(tensor.role)},
          {"equal", tensor.equal()},
          {"not_finite", tensor.not_finite},
          {"rounding", tensor.is_rounding},
          {"as_exact", tensor.is_as_exact},
          {"relative_error", tensor.relative_error()},
          {"absolute_error", tensor.largest_error},
          {"tolerance", tensor.tolerance},
          {"rank", tensor.rank}};
}

void print_tensor(const TensorComparison& tensor) {
  fmt::print("  {:<48} {:<9} {:>10.2e} {:>10.0e}  {}\n", tensor.name, name_of(tensor.role),
             tensor.relative_error(), tensor.tolerance, verdict(tensor));
}

void print_not_finite(const std::vector<TensorComparison>& tensors) {
  const auto first = std::ranges::find_if(tensors, &TensorComparison::proves_nothing);
  if (first == tensors.end()) return;
  fmt::print(
      "NOT FINITE: {} of {} outputs, in the whole model; the first is '{}': {} of its {} elements "
      "are NaN or infinite, and the ranks {}\n",
      std::ranges::count_if(tensors, &TensorComparison::proves_nothing), tensors.size(),
      first->name, first->not_finite, first->elements,
      first->agrees() ? "have the same" : "have others");
}

void print_report(const std::vector<TensorComparison>& tensors, const Arguments& arguments) {
  const auto worst = std::ranges::max_element(
      tensors, {}, [](const TensorComparison& t) { return t.relative_error(); });
  fmt::print("  {:<48} {:<9} {:>10} {:>10}\n", "output", "role", "error", "tolerance");
  for (const TensorComparison& tensor : tensors) {
    const bool shown = arguments.all || !tensor.equal() || &tensor == &*worst ||
                       tensor.is_rounding || tensor.role == onnx_io::OutputRole::kLoss;
    if (shown) print_tensor(tensor);
  }
  if (std::ranges::all_of(tensors, &TensorComparison::equal)) {
    fmt::print("equal: {} outputs on every rank, largest relative error {:.2e} ('{}')\n",
               tensors.size(), worst->relative_error(), worst->name);
    return;
  }
  print_not_finite(tensors);
  const auto differs = [](const TensorComparison& t) { return !t.agrees(); };
  const auto first = std::ranges::find_if(tensors, differs);
  if (first == tensors.end()) return;
  fmt::print(
      "DIFFERENT: {} of {} outputs; the first is '{}', element {}: {:.9g} on rank {}, {:.9g} "
      "whole\n",
      std::ranges::count_if(tensors, differs), tensors.size(), first->name, first->at,
      first->actual, first->rank, first->expected);
}

void print_curves(const Curves& curves, const Arguments& arguments) {
  fmt::print("{:>6} {:>14} {:>14} {:>14}\n", "step", "whole", "least rank", "most rank");
  for (size_t k = 0; k < curves.losses.size(); ++k) {
    const LossPoint& point = curves.losses[k];
    fmt::print("{:>6} {:>14.9g} {:>14.9g} {:>14.9g}\n", k + 1, point.whole,
               *std::ranges::min_element(point.ranks), *std::ranges::max_element(point.ranks));
  }
  fmt::print("  {:<48} {:<9} {:>10} {:>10}\n", "largest errors over the steps", "role", "error",
             "tolerance");
  const auto print = [&](const std::vector<TensorComparison>& tensors, const char* what) {
    const auto worst = std::ranges::max_element(
        tensors, {}, [](const TensorComparison& t) { return t.relative_error(); });
    for (const TensorComparison& tensor : tensors) {
      if (!arguments.all && tensor.equal() && &tensor != &*worst) continue;
      const char* outcome = tensor.is_rounding   ? "equal: the gradient is rounding"
                            : tensor.is_as_exact ? "equal: as far as rounding takes the whole model"
                                                 : verdict(tensor);
      fmt::print("  {:<48} {:<9} {:>10.2e} {:>10.0e}  {}\n", tensor.name,
                 what != nullptr ? what : name_of(tensor.role), tensor.relative_error(),
                 tensor.tolerance, outcome);
    }
  };
  print(curves.tensors, nullptr);
  print(curves.parameters, "parameter");
  const bool agree = std::ranges::all_of(curves.tensors, &TensorComparison::agrees) &&
                     std::ranges::all_of(curves.parameters, &TensorComparison::agrees);
  const char* outcome = curves.equal() ? "equal" : agree ? "NOT FINITE" : "DIFFERENT";
  fmt::print("{}: {} steps, {} gradients at each, {} parameters after the last\n", outcome,
             curves.losses.size(), curves.tensors.size() - 1, curves.parameters.size());
}

int validate_curves(const Arguments& arguments, const onnx_io::Manifest& manifest,
                    const std::shared_ptr<const ir::Graph>& whole,
                    const std::shared_ptr<executor::Backend>& backend) {
  training_plan(manifest, arguments.folder.string());
  const Curves curves = compare_curves(whole, manifest,
                                       {.folder = arguments.folder,
                                        .data_folder = arguments.model.parent_path(),
                                        .feed = arguments.inputs.feed,
                                        .seed = arguments.inputs.seed,
                                        .steps = arguments.steps,
                                        .rate = arguments.rate,
                                        .tolerance = arguments.tolerance,
                                        .timeout = arguments.timeout,
                                        .backend = backend,
                                        .fuse = arguments.device.fuse});
  print_notices(curves.notices);
  if (arguments.json) {
    Json report{{"equal", curves.equal()},
                {"losses", Json::array()},
                {"outputs", Json::array()},
                {"parameters", Json::array()}};
    for (const LossPoint& point : curves.losses) {
      report["losses"].push_back({{"whole", point.whole}, {"ranks", point.ranks}});
    }
    for (size_t k = 0; k < curves.tensors.size(); ++k) {
      Json tensor = to_json(curves.tensors[k]);
      tensor["step"] = curves.steps[k];
      report["outputs"].push_back(std::move(tensor));
    }
    for (const auto& tensor : curves.parameters) report["parameters"].push_back(to_json(tensor));
    fmt::print("{}\n", json_text(report));
  } else {
    print_curves(curves, arguments);
  }
  return curves.equal() ? 0 : kMismatch;
}

executor::Arrays make_feeds(const Arguments& arguments, const onnx_io::Manifest& manifest,
                            const std::optional<executor::Arrays>& given, const ir::Graph& whole) {
  if (given) {
    return select_feeds(manifest, with_initial_parameters(arguments.folder, *given),
                        fmt::format("'{}'", arguments.inputs.feed.string()));
  }
  executor::Arrays feeds = with_initial_parameters(arguments.folder, {});
  feeds.merge(generate_feeds(whole, manifest, arguments.inputs.seed));
  return feeds;
}

int run(const Arguments& arguments) {
  executor::restart_with_fast_openblas();
  const std::shared_ptr<executor::Backend> backend = open_device(arguments.device);
  std::optional<executor::Arrays> given;
  if (!arguments.inputs.feed.empty()) given = executor::read_npz(arguments.inputs.feed);
  const onnx_io::Manifest manifest = at_given_length(
      onnx_io::read_manifest(arguments.folder), arguments.inputs.dims, given ? &*given : nullptr);
  const auto whole_graph =
      std::make_shared<const ir::Graph>(load_whole(arguments.model, arguments.folder, manifest));
  if (arguments.steps > 0) return validate_curves(arguments, manifest, whole_graph, backend);
  executor::Arrays feeds = make_feeds(arguments, manifest, given, *whole_graph);
  if (arguments.step) set_step(manifest, *arguments.step, feeds);
  executor::RunOptions options;
  options.timeout = arguments.timeout;
  options.data_folder = arguments.folder;
  options.backend = backend;
  options.compile.fuse = arguments.device.fuse;
  executor::RunResult sharded = run_ranks(arguments.folder, manifest, feeds, options);
  std::vector<executor::Arrays> ranks;
  for (executor::RankResult& rank : sharded.ranks) ranks.push_back(std::move(rank.outputs));
  options.data_folder = arguments.model.parent_path();
  options.backend = nullptr;  // the whole model runs on the CPU, operator by operator
  options.compile.fuse = false;
  const auto [whole, tensors] =
      compare_with_whole(whole_graph, feeds, options, manifest, ranks, arguments.tolerance);
  if (tensors.empty()) {
    throw Error("the model and '{}' share no output", arguments.folder.string())
        .note(fmt::format("its manifest lists {} outputs", manifest.outputs.size()))
        .help("shard the model again");
  }
  const bool equal = std::ranges::all_of(tensors, &TensorComparison::equal);
  std::vector<std::string> causes;
  if (std::ranges::any_of(tensors, [](const auto& tensor) { return !tensor.agrees(); })) {
    causes = likely_causes({manifest, whole_graph, options, feeds, whole, ranks, tensors});
  }
  print_notices(sharded.ranks);
  if (arguments.json) {
    Json report{{"equal", equal},
                {"finite", std::ranges::none_of(tensors, &TensorComparison::proves_nothing)},
                {"loss", loss_of(whole, manifest)},
                {"rank_losses", Json::array()},
                {"outputs", Json::array()}};
    for (const auto& rank : ranks) report["rank_losses"].push_back(loss_of(rank, manifest));
    for (const TensorComparison& tensor : tensors) report["outputs"].push_back(to_json(tensor));
    report["causes"] = causes;
    fmt::print("{}\n", json_text(report));
  } else {
    fmt::print("loss {:.9g} whole", loss_of(whole, manifest));
    for (size_t k = 0; k < ranks.size(); ++k) {
      fmt::print(", {:.9g} on rank {}", loss_of(ranks[k], manifest), k);
    }
    fmt::print("\n");
    print_report(tensors, arguments);
    for (const std::string& cause : causes) fmt::print("likely cause: {}\n", cause);
  }
  return equal ? 0 : kMismatch;
}

}  // namespace

void add_validate(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("validate", "Compares a sharded model with the whole one");
  command->footer(kFooter);
  command->add_option("model", arguments->model, "The training graph (.onnx)")
      ->required()
      ->type_name("MODEL");
  command->add_option("folder", arguments->folder, "What 'shard' wrote for it")
      ->required()
      ->type_name("OUT");
  add_feed_options(*command, arguments->inputs);
  add_step_option(*command, arguments->step);
  command
      ->add_option(
          "--tolerance", arguments->tolerance,
          "Relative error allowed; a tenth of it for the loss. By default 1e-4 for float32, "
          "1e-2 for float16, 5e-2 for bfloat16, 1e-10 for float64, by the coarsest type that an "
          "output is computed with")
      ->check(tolerance())
      ->type_name("ERROR");
  add_run_device_options(*command, arguments->device);
  add_timeout_option(*command, arguments->timeout);
  command
      ->add_option(
          "--steps", arguments->steps,
          "Trains both this long and compares losses, the gradients of every step, and the "
          "parameters at the end; of a model sharded with --optimizer")
      ->check(at_least_one())
      ->type_name("N");
  command->add_option("--lr", arguments->rate, "Learning rate of --steps")
      ->check(learning_rate())
      ->capture_default_str();
  command->add_flag("--all", arguments->all, "Lists every tensor, not only the worst");
  command->add_flag("--json", arguments->json, "Prints the report as JSON");
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace autosp::cli

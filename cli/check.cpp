// autosp-onnx check MODEL: everything that stands between a model and its sharded run, at once.
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>

#include "base/error.h"
#include "command.h"
#include "json_text.h"
#include "prediction.h"
#include "rank_kinds.h"
#include "ranks.h"
#include "recompute_arguments.h"
#include "ring_choice.h"

namespace autosp::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFooter = R"(
Each line says what was looked at, whether it passes, and what to do if it does not. Nothing is run or
written. What a failure leaves unknown is told as not looked at.

Examples:
  autosp-onnx check model.onnx --dim seq=32768 --sp 8 --device h100
  autosp-onnx check model.onnx --dim seq=32768 --sp 4 --dp 2 --memory 40GiB --json

Exit codes: 0 nothing fails, 1 something does, 2 the command line is wrong.)";

struct Arguments {
  ModelArguments model;
  PassArguments passes;
  PlanArguments plan;
  RecomputeArguments recompute;
  DeviceArguments device;
  int64_t ranks_per_machine = 8;
  bool json = false;
};

enum class Verdict : uint8_t { kPass, kWarning, kFailure, kNotLookedAt };

std::string_view name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::kPass:
      return "pass";
    case Verdict::kWarning:
      return "warning";
    case Verdict::kFailure:
      return "FAIL";
    case Verdict::kNotLookedAt:
      return "not looked at";
  }
  return "";
}

struct Finding {
  std::string check;
  Verdict verdict = Verdict::kPass;
  std::string found;
  std::string help;  // what to do; "" where nothing is
};

// The checks of one model, in the order in which one leads to the next.
class Checks {
 public:
  explicit Checks(const Arguments& arguments)
      : arguments_(arguments),
        device_(load_device(arguments.device.device)),
        memory_(arguments.device.memory_bytes(device_)) {}

  std::vector<Finding> run() {
    check_graph();
    if (model_) {
      check_gradients();
      check_tags();
      check_attention();
    }
    if (model_) check_plan();
    if (plan_) {
      check_heads();
      check_operators();
      check_topology();
      check_memory();
    }
    for (const char* name : {"graph", "backward", "sequence", "batch", "attention", "split",
                             "heads", "operators", "topology", "memory"}) {
      if (std::ranges::find(findings_, name, &Finding::check) != findings_.end()) continue;
      add(name, Verdict::kNotLookedAt, "what fails above comes first");
    }
    return std::move(findings_);
  }

 private:
  void add(std::string check, Verdict verdict, std::string found, std::string help = "") {
    findings_.push_back({std::move(check), verdict, std::move(found), std::move(help)});
  }

  // `look` fails with an Error.
  template <typename Look>
  void guarded(const std::string& check, const Look& look) {
    try {
      look();
    } catch (const Error& error) {
      std::string found = error.message();
      for (const std::string& note : error.notes()) found += "; " + note;
      add(check, Verdict::kFailure, found, fmt::format("{}", fmt::join(error.helps(), "; ")));
    }
  }

  // Read, of one piece, with a loss and gradients, and all shapes known.
  void check_graph() {
    guarded("graph", [&] {
      model_ = load_model(arguments_.model, arguments_.passes);
      add("graph", Verdict::kPass,
          fmt::format("{} operators of operator set {}, every shape is known",
                      model_->graph.nodes().size(), model_->graph.opset));
    });
  }

  void check_gradients() {
    const ir::Graph& graph = model_->graph;
    const shard::Roles& roles = model_->roles;
    if (!roles.loss) {
      add("backward", Verdict::kFailure, "no output is the loss", "name it with --loss OUTPUT");
      return;
    }
    add("backward", Verdict::kPass,
        fmt::format("loss '{}', gradients of {} parameters", graph.outputs()[*roles.loss].name,
                    roles.gradients.size()));
  }

  std::string names(const std::vector<shard::DimTag>& tags) const {
    std::vector<std::string> words;
    for (const shard::DimTag& tag : tags) {
      words.push_back(fmt::format("{}:{}", model_->graph.name_of(tag.value), tag.dim));
    }
    return fmt::format("{}", fmt::join(words, ", "));
  }

  void check_tags() {
    const shard::Roles& roles = model_->roles;
    if (roles.sequence.empty()) {
      add("sequence", Verdict::kWarning,
          "no input has a sequence dimension by name: it is looked for in the softmaxes",
          "name it with --seq INPUT:AXIS");
    } else {
      add("sequence", Verdict::kPass, names(roles.sequence));
    }
    if (!roles.batch.empty()) {
      add("batch", Verdict::kPass, names(roles.batch));
    } else if (arguments_.plan.dp > 1) {
      add("batch", Verdict::kFailure,
          fmt::format("none was found, and --dp is {}", arguments_.plan.dp),
          "name it with --batch INPUT:AXIS");
    } else {
      add("batch", Verdict::kPass, "none, and none is split");
    }
  }

  void check_attention() {
    std::vector<std::string> reasons;
    for (const transforms::AttentionRegion& region : model_->attention) {
      if (!region.fused) reasons.push_back(fmt::format("'{}': {}", region.name, region.reason));
    }
    const size_t fused = model_->attention.size() - reasons.size();
    if (reasons.empty()) {
      add("attention", Verdict::kPass, fmt::format("{} layers, none forms its scores", fused));
      return;
    }
    add("attention", Verdict::kWarning,
        fmt::format("{} of {} layers keep their scores: {}", reasons.size(),
                    model_->attention.size(), fmt::join(reasons, "; ")),
        "results are right, but memory grows with the square of the sequence; docs/attention.md "
        "says what is recognised");
  }

  void check_plan() {
    guarded("split", [&] {
      plan_ = plan_model(*model_,
                         with_ring_chosen(arguments_.plan, *model_, arguments_.recompute, device_));
      program_ = transforms::build_program(*plan_);
      if (plan_->gathered.empty()) {
        add("split", Verdict::kPass,
            fmt::format("{} tokens over {}: {}", plan_->sequence_extent,
                        count_of_ranks(static_cast<size_t>(plan_->mesh.size())),
                        plan_->mesh.to_string()));
        return;
      }
      std::vector<std::string> nodes;
      int64_t bytes = 0;
      for (const shard::GatheredOperator& entry : plan_->gathered) {
        nodes.push_back(fmt::format(
            "{} ({})", plan_->graph().describe(plan_->graph().node(entry.node)), entry.reason));
        bytes += entry.bytes;
      }
      add("split", Verdict::kWarning,
          fmt::format("{} operators are computed whole on every rank, {} each: {}", nodes.size(),
                      format_bytes(static_cast<double>(bytes)), fmt::join(nodes, "; ")),
          "results are right; 'autosp-onnx explain MODEL VALUE' says why a value is not split");
    });
  }

  void check_heads() {
    const shard::AttentionSizes sizes = plan_->attention_sizes();
    if (!sizes.found) {
      add("heads", Verdict::kPass, "no attention was found that would need them");
      return;
    }
    const std::string heads = fmt::format("{} query heads, {} KV heads",
                                          sizes.kv_heads * sizes.head_groups, sizes.kv_heads);
    const std::vector<int64_t> alone = shard::sp_by_heads_alone(sizes);
    const int64_t sp = arguments_.plan.ranks();
    if (std::ranges::find(alone, sp) != alone.end()) {
      add("heads", Verdict::kPass, fmt::format("{}: {} ranks divide them", heads, sp));
    } else {
      add("heads", Verdict::kWarning,
          fmt::format("{}: {} ranks do not divide them, keys and values {}", heads, sp,
                      plan_->has_ring() ? "travel around a ring" : "are gathered"),
          fmt::format("cheaper, if it is enough: --sp {}", fmt::join(alone, ", ")));
    }
  }

  void check_operators() {
    guarded("operators", [&] {
      for (const int64_t rank : rank_kinds(*program_)) compile_rank(*program_, rank);
      add("operators", Verdict::kPass, "the bundled executor has a kernel for each");
    });
  }

  void check_topology() {
    const int64_t sp = arguments_.plan.ranks();
    const int64_t all = plan_->mesh.size();
    const int64_t here = arguments_.ranks_per_machine;
    const std::string ranks = fmt::format("{} in all, {} of them share a sequence", all, sp);
    if (sp <= here && (all <= here || here % sp == 0)) {
      add("topology", Verdict::kPass, fmt::format("{}, on one machine of {}", ranks, here));
      return;
    }
    add("topology", Verdict::kWarning,
        fmt::format("{}: with {} on a machine, a sequence crosses machines", ranks, here),
        "inside attention everything is exchanged: keep a sequence's ranks on one machine, and use "
        "more of them with --dp");
  }

  void check_memory() {
    guarded("memory", [&] {
      const RecomputedProgram chosen =
          with_recompute(*program_, arguments_.recompute, device_, memory_ - fed_bytes(*program_));
      const Prediction prediction = predict(*model_, chosen.program, device_);
      const std::string found = fmt::format(
          "{} of {} ({}, recompute {})", format_bytes(static_cast<double>(prediction.peak)),
          format_bytes(static_cast<double>(memory_)), device_.name, chosen.summary.policy);
      if (prediction.peak <= memory_) {
        add("memory", Verdict::kPass, found);
      } else {
        add("memory", Verdict::kFailure, found,
            "more ranks, --recompute sac or full, --tile auto, or a shorter sequence: "
            "'autosp-onnx plan --sweep' tabulates them");
      }
    });
  }

  const Arguments& arguments_;
  cost::Device device_;
  int64_t memory_ = 0;
  std::optional<LoadedModel> model_;
  std::optional<shard::Plan> plan_;
  std::optional<transforms::SpmdProgram> program_;
  std::vector<Finding> findings_;
};

void print(const std::vector<Finding>& findings) {
  for (const Finding& finding : findings) {
    fmt::print("{:<14} {:<11} {}\n", name_of(finding.verdict), finding.check, finding.found);
    if (!finding.help.empty()) fmt::print("{:<14} {:<11} -> {}\n", "", "", finding.help);
  }
}

int run(const Arguments& arguments) {
  const std::vector<Finding> findings = Checks(arguments).run();
  const bool fails = std::ranges::any_of(
      findings, [](const Finding& finding) { return finding.verdict == Verdict::kFailure; });
  if (arguments.json) {
    Json rows = Json::array();
    for (const Finding& finding : findings) {
      std::string verdict(name_of(finding.verdict));
      std::ranges::transform(verdict, verdict.begin(), [](char letter) {
        return static_cast<char>(letter == ' ' ? '-' : std::tolower(letter));
      });
      rows.push_back({{"check", finding.check},
                      {"verdict", verdict},
                      {"found", finding.found},
                      {"help", finding.help}});
    }
    fmt::print("{}\n", json_text({{"passes", !fails}, {"checks", std::move(rows)}}));
  } else {
    print(findings);
  }
  return fails ? kMismatch : 0;
}

}  // namespace

void add_check(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      app.add_subcommand("check", "Says what stands between a model and its sharded run");
  command->footer(kFooter);
  add_model_options(*command, arguments->model);
  add_plan_options(*command, arguments->plan);
  add_recompute_options(*command, arguments->recompute);
  add_device_options(*command, arguments->device);
  command
      ->add_option("--ranks-per-machine", arguments->ranks_per_machine,
                   "How many ranks fast links connect")
      ->check(at_least_one())
      ->type_name("N")
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "Prints the findings as JSON");
  add_pass_options(*command, arguments->passes);
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace autosp::cli

// autosp-onnx plan MODEL --sp N --memory 80GiB --device h100: what a sharded step will take.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>

#include "base/error.h"
#include "command.h"
#include "json_text.h"
#include "longest_sequence.h"
#include "onnx/model.h"
#include "prediction.h"
#include "ring_choice.h"
#include "training/arguments.h"
#include "transforms/ring_attention/ring.h"

namespace autosp::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFooter = R"(
Nothing is run: memory is what the executor would set aside at one thread per rank, to the byte; work
and time follow from shapes and the device's rates. Memory is of the rank that takes most, time of the
one that computes longest. With --optimizer, its state is part of the memory; the time of an update
is not included.

All this is for the sequence that --dim gives. Where that is a symbolic dimension ('inspect --dims'
lists them), the longest sequence that fits into --memory is told as well, to 64 tokens.

Examples:
  autosp-onnx plan model.onnx --dim seq=32768 --sp 8 --device h100 --memory 80GiB
  autosp-onnx plan model.onnx --dim seq=32768 --sweep          sp x recompute x tile, as a table
  autosp-onnx plan model.onnx --sp 4 --device mine.json        {"like": "a100", "link": 2.5e10})";

struct Arguments {
  ModelArguments model;
  PassArguments passes;
  PlanArguments plan;
  RecomputeArguments recompute;
  TrainingArguments training;
  DeviceArguments device;
  bool overlap = false;
  bool sweep = false;
  bool tile_given = false;
  bool json = false;
};

struct Planned {
  Prediction prediction;
  std::string mesh;
  bool ring = false;
  bool zigzag = false;  // of some attention
  std::string policy;
  int64_t sequence = 0;
};

LoadedModel load(const Arguments& arguments) {
  LoadedModel model = load_model(arguments.model, arguments.passes);
  add_loss_weight(arguments.training, model);
  return model;
}

// What a rank has in its memory beside results and scratch: fed values, and what training keeps.
int64_t outside_bytes(const transforms::SpmdProgram& program, const TrainingArguments& training) {
  const auto exchange = plan_training(training, program);
  if (exchange == nullptr) return fed_bytes(program);
  const transforms::TrainingBytes kept = transforms::training_bytes(exchange->plan, 0);
  int64_t whole = 0;  // of the parameters that it has a part of
  for (const auto& parameter : exchange->plan.parameters) whole += parameter.type.num_bytes();
  return fed_bytes(program) - whole + kept.parameters + kept.optimizer_state + kept.gradient_sums;
}

Planned plan_once(const LoadedModel& model, const Arguments& arguments, const cost::Device& device,
                  int64_t memory) {
  const shard::Plan plan = plan_model(model, arguments.plan);
  const transforms::SpmdProgram kept = transforms::build_program(plan);
  RecomputedProgram program = with_recompute(kept, arguments.recompute, device,
                                             memory - outside_bytes(kept, arguments.training));
  program.program.exchange = plan_training(arguments.training, program.program);
  return {.prediction = predict(model, program.program, device, arguments.overlap),
          .mesh = plan.mesh.to_string(),
          .ring = plan.has_ring(),
          .zigzag = transforms::zigzag_use(program.program).zigzag > 0,
          .policy = program.summary.policy,
          .sequence = plan.sequence_extent};
}

// Longest sequences are told to this many tokens, or what the model takes that is a multiple of it.
constexpr int64_t kGranularity = 64;

Arguments at_length(const Arguments& arguments, const std::string& dim, int64_t sequence) {
  Arguments there = arguments;
  std::erase_if(there.model.dims,
                [&](const std::string& text) { return text.starts_with(dim + "="); });
  there.model.dims.push_back(fmt::format("{}={}", dim, sequence));
  there.passes.print_after.clear();
  there.passes.timing = false;
  return there;
}

// Whether the model can be planned at that length.
bool takes(const Arguments& arguments, const std::string& dim, int64_t sequence) {
  try {
    const Arguments there = at_length(arguments, dim, sequence);
    plan_model(load(there), there.plan);
    return true;
  } catch (const Error&) {
    return false;
  }
}

// Plans the model at other lengths than its own.
class LengthSearch {
 public:
  LengthSearch(const Arguments& arguments, const cost::Device& device, std::string dim,
               int64_t memory, int64_t known)
      : arguments_(arguments),
        device_(device),
        dim_(std::move(dim)),
        memory_(memory),
        known_(known),
        multiple_(accepted_multiple(
            [this](int64_t sequence) { return takes(arguments_, dim_, sequence); }, known)),
        step_(std::lcm(kGranularity, multiple_)) {}

  int64_t run() const {
    LengthLimits limits{.memory = memory_};
    const std::string& policy = arguments_.recompute.policy;
    const std::optional<int64_t> budget = budget_of(arguments_.recompute);
    if (!budget && policy != "auto") return longest(arguments_, limits);
    // As much recomputation as there is nearly always takes least.
    Arguments full = arguments_;
    full.recompute.policy = "full";
    if (budget) limits.arena = *budget;
    return beyond(longest(full, limits));
  }

 private:
  using Ranks = std::vector<RankMemory>;

  std::optional<Ranks> plan_at(const Arguments& like, int64_t sequence) const {
    try {
      const Arguments there = at_length(like, dim_, sequence);
      const LoadedModel model = load(there);
      return plan_once(model, there, device_, memory_).prediction.ranks;
    } catch (const Error&) {  // no budget is small enough, or the model does not go that far
      return std::nullopt;
    }
  }

  int64_t longest(const Arguments& like, LengthLimits limits) const {
    const PlanAt plan = [&](int64_t sequence) { return plan_at(like, sequence); };
    const int64_t found = longest_sequence(plan, limits, known_, step_);
    if (found > 0 || multiple_ == step_) return found;
    limits.longest = step_;
    return longest_sequence(plan, limits, std::min(known_, step_), multiple_);
  }

  bool fits(int64_t sequence) const {
    const auto ranks = plan_at(arguments_, sequence);
    return ranks && std::ranges::all_of(
                        *ranks, [this](const RankMemory& rank) { return rank.most() <= memory_; });
  }

  // Whether more fits, from a length that does.
  int64_t beyond(int64_t length) const {
    constexpr int64_t kGrowth = 4;
    const int64_t least = resolution(length / step_) * step_;
    int64_t stride = least;
    while (length + stride <= LengthLimits().longest && fits(length + stride)) {
      length += stride;
      stride *= kGrowth;
    }
    while (stride > least) {
      stride /= 2;
      if (fits(length + stride)) length += stride;
    }
    return length;
  }

  const Arguments& arguments_;
  const cost::Device& device_;
  std::string dim_;
  int64_t memory_;
  int64_t known_;  // a length that the model takes
  int64_t multiple_;
  int64_t step_;
};

void print_memory(const Planned& planned, int64_t memory) {
  fmt::print("memory at the peak\n");
  for (size_t k = 0; k < executor::kBuckets; ++k) {
    const int64_t bytes = planned.prediction.memory[k];
    if (bytes == 0) continue;
    fmt::print("  {:<24} {:>12}\n", name_of(static_cast<executor::Bucket>(k)),
               format_bytes(static_cast<double>(bytes)));
  }
  const transforms::TrainingBytes& kept = planned.prediction.kept;
  const auto print_kept = [](const char* name, int64_t bytes) {
    if (bytes == 0) return;
    fmt::print("  {:<24} {:>12}\n", name, format_bytes(static_cast<double>(bytes)));
  };
  print_kept("optimizer state", kept.optimizer_state);
  print_kept("gradient sums", kept.gradient_sums);
  fmt::print("  {:<24} {:>12}   {} {}\n", "total",
             format_bytes(static_cast<double>(planned.prediction.peak)),
             planned.prediction.peak <= memory ? "fits into" : "exceeds",
             format_bytes(static_cast<double>(memory)));
}

void print_report(const Planned& planned, const Arguments& arguments, const cost::Device& device,
                  int64_t memory, const std::optional<int64_t>& longest) {
  const Prediction& p = planned.prediction;
  fmt::print("{}, {} positions: {}{}; recompute {}; {}\n",
             arguments.model.model.filename().string(), planned.sequence, planned.mesh,
             planned.zigzag ? " (a ring in zigzag order)"
             : planned.ring ? " (a ring)"
                            : "",
             planned.policy, device.name);
  print_memory(planned, memory);
  fmt::print(
      "work\n  {:<24} {:>12.4g} FLOPs forward, {:.4g} backward, {:.4g} recomputed ({:.1f} %)\n",
      "operations", p.forward_flops, p.backward_flops, p.recompute_flops,
      100 * p.recompute_flops / (p.forward_flops + p.backward_flops));
  fmt::print("  {:<24} {:>12} in {} collectives\n", "sent",
             format_bytes(static_cast<double>(p.bytes_sent)), p.collectives);
  fmt::print("time\n  {:<24} {:>12.4g} s: {:.4g} computing, {:.4g} in collectives{}\n", "of a step",
             p.seconds(), p.compute_seconds, p.collective_seconds,
             arguments.overlap ? fmt::format(", of which {:.4g} exposed", p.exposed_seconds) : "");
  if (longest) {
    fmt::print("longest sequence that fits {}\n", *longest);
  } else {
    fmt::print("longest sequence that fits: not searched, the model fixes the sequence\n");
  }
}

// As asked for, or what can be divided over the heads, up to 8.
std::vector<int64_t> sweep_sizes(const LoadedModel& model, const Arguments& arguments) {
  if (arguments.plan.sp || !arguments.plan.sp_mesh.empty()) return {arguments.plan.ranks()};
  const shard::Plan whole = shard::make_plan(model.graph, model.roles, {});
  std::vector<int64_t> sizes = shard::sp_by_heads_alone(whole.attention_sizes());
  constexpr int64_t kMost = 8;
  std::erase_if(sizes, [&](int64_t sp) { return sp > kMost || sp > whole.most_sequence_ranks; });
  return sizes.empty() ? std::vector<int64_t>{1} : sizes;
}

std::vector<std::string> sweep_policies(const Arguments& arguments) {
  if (!arguments.recompute.policy.empty()) return {arguments.recompute.policy};
  return {"none", "mincut", "sac", "full"};
}

std::vector<std::string> sweep_tiles(const Arguments& arguments) {
  if (arguments.tile_given) return {arguments.recompute.tile};
  return {"off", "auto"};
}

void print_row(const Arguments& point, const Prediction& p, bool fits) {
  fmt::print("{:>4}  {:<14} {:<6} {:>12} {:>6} {:>12} {:>12.4g} {:>6.1f} % {:>10.4g}\n",
             point.plan.ranks(), point.recompute.policy, point.recompute.tile,
             format_bytes(static_cast<double>(p.peak)), fits ? "yes" : "no",
             format_bytes(static_cast<double>(p.bytes_sent)), p.flops(),
             100 * p.recompute_flops / (p.forward_flops + p.backward_flops), p.seconds());
}

int sweep(const Arguments& arguments, const LoadedModel& model, const cost::Device& device,
          int64_t memory) {
  std::vector<Arguments> points;
  for (int64_t sp : sweep_sizes(model, arguments)) {
    for (const std::string& policy : sweep_policies(arguments)) {
      for (const std::string& tile : sweep_tiles(arguments)) {
        points.push_back(arguments);
        points.back().plan.sp = sp;
        points.back().recompute = {.policy = policy, .tile = tile};
      }
    }
  }
  Json rows = Json::array();
  for (Arguments& point : points) {
    point.plan = with_ring_chosen(point.plan, model, point.recompute, device, point.overlap);
    const Planned planned = plan_once(model, point, device, memory);
    const Prediction& p = planned.prediction;
    const bool fits = p.peak <= memory;
    if (rows.empty() && !arguments.json) {
      fmt::print("{:>4}  {:<14} {:<6} {:>12} {:>6} {:>12} {:>12} {:>8} {:>10}\n", "sp", "recompute",
                 "tile", "peak", "fits", "sent", "FLOPs", "again", "seconds");
    }
    Json row = {{"sp", point.plan.ranks()},     {"recompute", point.recompute.policy},
                {"tile", point.recompute.tile}, {"ring", planned.ring},
                {"zigzag", planned.zigzag},     {"fits", fits}};
    row.update(to_json(p));
    rows.push_back(row);
    if (!arguments.json) print_row(point, p, fits);
  }
  if (arguments.json) fmt::print("{}\n", json_text(rows));
  return 0;
}

int run(Arguments arguments) {
  const cost::Device device = load_device(arguments.device.device);
  const int64_t memory = arguments.device.memory_bytes(device);
  settle(arguments.training, arguments.plan.deepspeed_config);
  arguments.model.train = arguments.training.wanted();
  const LoadedModel model = load(arguments);
  if (arguments.sweep) return sweep(arguments, model, device, memory);
  arguments.plan =
      with_ring_chosen(arguments.plan, model, arguments.recompute, device, arguments.overlap);
  const Planned planned = plan_once(model, arguments, device, memory);
  std::optional<int64_t> longest;
  if (const std::string dim = sequence_dimension(model); !dim.empty()) {
    const int64_t known = model.bindings.dims.at(dim);
    longest = LengthSearch(arguments, device, dim, memory, known).run();
  }
  if (!arguments.json) {
    print_report(planned, arguments, device, memory, longest);
    return 0;
  }
  Json report = {{"model", arguments.model.model.string()},
                 {"device", device.name},
                 {"memory_limit_bytes", memory},
                 {"mesh", planned.mesh},
                 {"ring", planned.ring},
                 {"zigzag", planned.zigzag},
                 {"recompute", planned.policy},
                 {"sequence", planned.sequence},
                 {"fits", planned.prediction.peak <= memory}};
  report.update(to_json(planned.prediction));
  report["longest_sequence"] = longest ? Json(*longest) : Json();
  fmt::print("{}\n", json_text(report));
  return 0;
}

}  // namespace

void add_plan(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      app.add_subcommand("plan", "Predicts memory, work, communication and time of a sharded step");
  command->footer(kFooter);
  add_model_options(*command, arguments->model);
  add_plan_options(*command, arguments->plan);
  add_recompute_options(*command, arguments->recompute);
  add_training_options(*command, arguments->training);
  add_device_options(*command, arguments->device);
  command->add_flag("--overlap", arguments->overlap,
                    "Of a run with --overlap: collectives beside computation");
  command->add_flag(
      "--sweep", arguments->sweep,
      "A table over sp, recompute policies and tiles; --sp, --recompute and --tile restrict it");
  command->add_flag("--json", arguments->json, "Prints the prediction as JSON");
  add_pass_options(*command, arguments->passes);
  command->callback([arguments, command, &action] {
    arguments->tile_given = command->count("--tile") > 0;
    action = [arguments] { return run(*arguments); };
  });
}

}  // namespace autosp::cli

// autosp-onnx plan MODEL --sp N --memory 80GiB --device h100: what a sharded step will take.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "command.h"
#include "json_text.h"
#include "onnx/model.h"
#include "prediction.h"

namespace autosp::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFooter = R"(
Nothing is run: memory is what the executor would set aside, to the byte; work and time follow from
shapes and the device's rates. Sizes and times are those of one rank; the optimizer is not included.

Where the model leaves the sequence open, the longest one that fits into --memory is searched for.

Examples:
  autosp-onnx plan model.onnx --dim seq=32768 --sp 8 --device h100 --memory 80GiB
  autosp-onnx plan model.onnx --dim seq=32768 --sweep          sp times recompute, as a table
  autosp-onnx plan model.onnx --sp 4 --device mine.json        {"like": "a100", "link": 2.5e10})";

struct Arguments {
  ModelArguments model;
  PassArguments passes;
  PlanArguments plan;
  RecomputeArguments recompute;
  std::string memory;
  std::string device = "h100";
  bool sweep = false;
  bool json = false;
};

struct Planned {
  Prediction prediction;
  std::string mesh;
  std::string policy;
  int64_t sequence = 0;
};

Planned plan_once(const LoadedModel& model, const Arguments& arguments, const cost::Device& device,
                  int64_t memory) {
  const shard::Plan plan = plan_model(model, arguments.plan);
  const transforms::SpmdProgram kept = transforms::build_program(plan);
  const RecomputedProgram program =
      with_recompute(kept, arguments.recompute, device, memory - fed_bytes(kept));
  return {.prediction = predict(model, program.program, device),
          .mesh = plan.mesh.to_string(),
          .policy = program.summary.policy,
          .sequence = plan.sequence_extent};
}

// The symbolic dimension that the sequence is, if the model leaves it open.
std::string sequence_dimension(const LoadedModel& model) {
  for (const onnx_io::SymbolicDim& dim : onnx_io::symbolic_dims(model.path)) {
    for (const shard::DimTag& tag : model.roles.sequence) {
      const std::string use = fmt::format("{}:{}", model.graph.name_of(tag.value), tag.dim);
      if (std::ranges::find(dim.uses, use) != dim.uses.end()) return dim.name;
    }
  }
  return "";
}

// Longest sequences are told to this many tokens, and to 1 %.
constexpr int64_t kGranularity = 64;
constexpr int64_t kLongest = int64_t{1} << 24;

class SequenceSearch {
 public:
  SequenceSearch(Arguments arguments, const cost::Device& device, std::string dim, int64_t memory)
      : arguments_(std::move(arguments)), device_(device), dim_(std::move(dim)), memory_(memory) {
    std::erase_if(arguments_.model.dims,
                  [this](const std::string& text) { return text.starts_with(dim_ + "="); });
  }

  // 0 when not even the shortest fits. Memory grows almost linearly, so where the line through the
  // two sequences around the limit crosses it is nearly the answer.
  int64_t longest() const {
    Point below{.sequence = 0, .peak = 0};
    Point above = at(kGranularity);
    while (above.peak <= memory_ && above.sequence < kLongest) {
      const int64_t guess = crossing(below, above);
      below = above;
      above = at(std::clamp(guess + guess / 50 + kGranularity, 2 * above.sequence, kLongest));
    }
    if (above.peak <= memory_) return above.sequence;
    while (above.sequence - below.sequence > std::max(kGranularity, below.sequence / 100)) {
      // A little to the side of the crossing that is farther away, so that both sides close in.
      const int64_t guess = crossing(below, above);
      const bool nearer_below = guess - below.sequence < above.sequence - guess;
      const int64_t margin = guess / 200 + kGranularity;
      const Point next =
          at(std::clamp(nearer_below ? guess + margin : guess - margin,
                        below.sequence + kGranularity, above.sequence - kGranularity));
      (next.peak <= memory_ ? below : above) = next;
    }
    return below.sequence;
  }

 private:
  struct Point {
    int64_t sequence = 0;
    int64_t peak = 0;
  };

  int64_t crossing(const Point& a, const Point& b) const {
    const double slope = static_cast<double>(b.peak - a.peak) /
                         static_cast<double>(std::max<int64_t>(b.sequence - a.sequence, 1));
    if (slope <= 0) return kLongest;
    const double more = static_cast<double>(memory_ - a.peak) / slope;
    return a.sequence + static_cast<int64_t>(std::clamp(more, 0.0, static_cast<double>(kLongest)));
  }

  Point at(int64_t sequence) const {
    sequence = sequence / kGranularity * kGranularity;
    Arguments there = arguments_;
    there.model.dims.push_back(fmt::format("{}={}", dim_, sequence));
    try {
      const LoadedModel model = load_model(there.model, {.passes = there.passes.passes});
      return {sequence, plan_once(model, there, device_, memory_).prediction.peak};
    } catch (const Error&) {  // no budget is small enough, or the model does not go that far
      return {sequence, 2 * memory_};
    }
  }

  Arguments arguments_;
  const cost::Device& device_;
  std::string dim_;
  int64_t memory_;
};

void print_memory(const Planned& planned, int64_t memory) {
  fmt::print("memory at the peak\n");
  for (size_t k = 0; k < executor::kBuckets; ++k) {
    const int64_t bytes = planned.prediction.memory[k];
    if (bytes == 0) continue;
    fmt::print("  {:<24} {:>12}\n", name_of(static_cast<executor::Bucket>(k)),
               format_bytes(static_cast<double>(bytes)));
  }
  fmt::print("  {:<24} {:>12}   {} {}\n", "total",
             format_bytes(static_cast<double>(planned.prediction.peak)),
             planned.prediction.peak <= memory ? "fits into" : "exceeds",
             format_bytes(static_cast<double>(memory)));
}

void print_report(const Planned& planned, const Arguments& arguments, const cost::Device& device,
                  int64_t memory, const std::optional<int64_t>& longest) {
  const Prediction& p = planned.prediction;
  fmt::print("{}, {} positions: {}; recompute {}; {}\n", arguments.model.model.filename().string(),
             planned.sequence, planned.mesh, planned.policy, device.name);
  print_memory(planned, memory);
  fmt::print(
      "work\n  {:<24} {:>12.4g} FLOPs forward, {:.4g} backward, {:.4g} recomputed ({:.1f} %)\n",
      "operations", p.forward_flops, p.backward_flops, p.recompute_flops,
      100 * p.recompute_flops / (p.forward_flops + p.backward_flops));
  fmt::print("  {:<24} {:>12} in {} collectives\n", "sent",
             format_bytes(static_cast<double>(p.bytes_sent)), p.collectives);
  fmt::print("time\n  {:<24} {:>12.4g} s: {:.4g} computing, {:.4g} in collectives\n", "of a step",
             p.seconds(), p.compute_seconds, p.collective_seconds);
  if (longest) {
    fmt::print("longest sequence that fits {}\n", *longest);
  } else {
    fmt::print("longest sequence that fits: not searched, the model fixes the sequence\n");
  }
}

// sp that can be divided over the heads, up to 8 or what was asked for.
std::vector<int64_t> sweep_sizes(const LoadedModel& model, const Arguments& arguments) {
  const shard::Plan whole = shard::make_plan(model.graph, model.roles, {});
  std::vector<int64_t> sizes = shard::sp_by_heads_alone(whole.attention_sizes());
  const int64_t most = std::max<int64_t>(8, arguments.plan.sp);
  std::erase_if(sizes, [&](int64_t sp) { return sp > most || sp > whole.sequence_extent; });
  return sizes.empty() ? std::vector<int64_t>{1} : sizes;
}

int sweep(const Arguments& arguments, const LoadedModel& model, const cost::Device& device,
          int64_t memory) {
  Json rows = Json::array();
  if (!arguments.json) {
    fmt::print("{:>4}  {:<10} {:>12} {:>6} {:>12} {:>12} {:>8} {:>10}\n", "sp", "recompute", "peak",
               "fits", "sent", "FLOPs", "again", "seconds");
  }
  for (int64_t sp : sweep_sizes(model, arguments)) {
    for (const char* policy : {"none", "mincut", "sac", "full"}) {
      Arguments point = arguments;
      point.plan.sp = sp;
      point.recompute.policy = policy;
      const Prediction p = plan_once(model, point, device, memory).prediction;
      Json row = {{"sp", sp}, {"recompute", policy}, {"fits", p.peak <= memory}};
      row.update(to_json(p));
      rows.push_back(row);
      if (arguments.json) continue;
      fmt::print("{:>4}  {:<10} {:>12} {:>6} {:>12} {:>12.4g} {:>6.1f} % {:>10.4g}\n", sp, policy,
                 format_bytes(static_cast<double>(p.peak)), p.peak <= memory ? "yes" : "no",
                 format_bytes(static_cast<double>(p.bytes_sent)), p.flops(),
                 100 * p.recompute_flops / (p.forward_flops + p.backward_flops), p.seconds());
    }
  }
  if (arguments.json) fmt::print("{}\n", json_text(rows));
  return 0;
}

int run(const Arguments& arguments) {
  const cost::Device device = load_device(arguments.device);
  const int64_t memory = arguments.memory.empty() ? static_cast<int64_t>(device.memory)
                                                  : parse_bytes(arguments.memory, "--memory");
  const LoadedModel model = load_model(arguments.model, arguments.passes);
  if (arguments.sweep) return sweep(arguments, model, device, memory);
  const Planned planned = plan_once(model, arguments, device, memory);
  std::optional<int64_t> longest;
  if (const std::string dim = sequence_dimension(model); !dim.empty()) {
    longest = SequenceSearch(arguments, device, dim, memory).longest();
  }
  if (!arguments.json) {
    print_report(planned, arguments, device, memory, longest);
    return 0;
  }
  Json report = {{"model", arguments.model.model.string()},
                 {"device", device.name},
                 {"memory_limit_bytes", memory},
                 {"mesh", planned.mesh},
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
  command->add_option("--memory", arguments->memory, "Of one rank; the device's when left out")
      ->type_name("BYTES");
  command->add_option("--device", arguments->device, "h100, h200, a100, cpu, or a JSON file")
      ->type_name("DEVICE")
      ->capture_default_str();
  command->add_flag("--sweep", arguments->sweep, "A table over sp and recompute policies");
  command->add_flag("--json", arguments->json, "Prints the prediction as JSON");
  add_pass_options(*command, arguments->passes);
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace autosp::cli

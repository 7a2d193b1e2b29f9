#include "prediction.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "base/error.h"
#include "executor/program.h"
#include "ir/operator_traits.h"
#include "node_cost.h"
#include "rank_kinds.h"
#include "sharded_folder.h"
#include "training/session.h"
#include "transforms/spmd/emit_ranks.h"
#include "transforms/training/emit_update.h"
#include "transforms/training/exchange.h"

namespace autosp::cli {

using Json = nlohmann::ordered_json;

int64_t parse_bytes(const std::string& text, const std::string& option) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string unit(end, text.data() + text.size());
  std::erase(unit, ' ');
  for (char& letter : unit) letter = static_cast<char>(std::tolower(letter));
  constexpr double kKi = 1024;
  constexpr std::pair<std::string_view, double> kUnits[] = {{"", 1},
                                                            {"b", 1},
                                                            {"kib", kKi},
                                                            {"mib", kKi * kKi},
                                                            {"kb", 1e3},
                                                            {"k", kKi},
                                                            {"m", kKi * kKi},
                                                            {"gib", kKi * kKi * kKi},
                                                            {"mb", 1e6},
                                                            {"gb", 1e9},
                                                            {"g", kKi * kKi * kKi},
                                                            {"tib", kKi * kKi * kKi * kKi},
                                                            {"tb", 1e12},
                                                            {"t", kKi * kKi * kKi * kKi}};
  const auto* const known =
      std::ranges::find(kUnits, unit, &std::pair<std::string_view, double>::first);
  const double bytes = known == std::end(kUnits) ? -1 : value * known->second;
  if (error != std::errc() || !(bytes >= 1) || bytes > 1e17) {
    throw Error("{} takes a number of bytes, not '{}'", option, text)
        .note(
            "a number, then a unit: KiB, MiB, GiB, TiB (or K, M, G, T), or KB, MB, GB, TB of "
            "powers of 1000")
        .help("for example: 80GiB, 512MiB, 24GB");
  }
  return std::llround(bytes);
}

namespace {

struct Field {
  const char* name;
  double cost::Device::*rate;
};
constexpr Field kFields[] = {{"memory", &cost::Device::memory},
                             {"product", &cost::Device::product},
                             {"product_wide", &cost::Device::product_wide},
                             {"attention", &cost::Device::attention},
                             {"attention_grad", &cost::Device::attention_grad},
                             {"bandwidth", &cost::Device::bandwidth},
                             {"link", &cost::Device::link},
                             {"latency", &cost::Device::latency}};

// A device as a JSON object.
class DeviceReader {
 public:
  DeviceReader(const Json& json, const std::string& file) : json_(json), file_(file) {}

  cost::Device read() const {
    check_names();
    cost::Device device = *cost::find_device("h100");
    if (json_.contains("like")) {
      const auto like = cost::find_device(text("like"));
      if (!like) {
        fail(fmt::format("'like' is '{}', no known device", text("like")),
             "known are h100, h200, a100, cpu");
      }
      device = *like;
    }
    device.name = json_.contains("name") ? text("name") : file_;
    for (const Field& field : kFields) {
      if (json_.contains(field.name)) device.*field.rate = number(field.name);
    }
    return device;
  }

 private:
  [[noreturn]] void fail(const std::string& what, const std::string& help) const {
    throw Error("'{}': {}", file_, what).note("it was given as --device").help(help);
  }

  void check_names() const {
    std::vector<std::string> names = {"like", "name"};
    for (const Field& field : kFields) names.emplace_back(field.name);
    for (const auto& [name, value] : json_.items()) {
      if (std::ranges::find(names, name) != names.end()) continue;
      const std::string near = nearest_name(name, names);
      fail(fmt::format("'{}' is no property of a device", name),
           near.empty() ? fmt::format("they are {}", fmt::join(names, ", "))
                        : fmt::format("did you mean '{}'?", near));
    }
  }

  std::string text(const char* field) const {
    if (json_[field].is_string()) return json_[field].get<std::string>();
    fail(fmt::format("'{}' is not a string", field), "put it in double quotes");
  }

  double number(const char* field) const {
    const Json& value = json_[field];
    if (value.is_number() && value.get<double>() > 0 && std::isfinite(value.get<double>())) {
      return value.get<double>();
    }
    fail(fmt::format("'{}' is not a number above 0", field),
         "rates are per second, memory is in bytes, latency in seconds");
  }

  const Json& json_;
  const std::string& file_;
};

cost::Device read_device(const std::string& file) {
  std::ifstream stream(file);
  if (!stream) {
    throw Error("cannot read '{}': {}", file, std::strerror(errno))
        .note("it was given as --device")
        .help("check that you may read it");
  }
  const Json json = Json::parse(stream, nullptr, false);
  if (json.is_object()) return DeviceReader(json, file).read();
  throw Error("'{}' does not describe a device", file)
      .note(json.is_discarded() ? "it is not JSON" : "it is JSON, but not an object")
      .help(
          "give a JSON object with some of: like, name, memory, product, product_wide, "
          "attention, attention_grad, bandwidth, link, latency");
}

}  // namespace

cost::Device load_device(const std::string& name_or_file) {
  if (const auto known = cost::find_device(name_or_file)) return *known;
  std::error_code code;
  if (std::filesystem::is_regular_file(name_or_file, code)) return read_device(name_or_file);
  std::vector<std::string> names;
  for (const cost::Device& device : cost::known_devices()) names.push_back(device.name);
  const std::string near = nearest_name(name_or_file, names);
  throw Error("'{}' is neither a known device nor a file", name_or_file)
      .note(std::filesystem::exists(name_or_file, code)
                ? "it exists, but is no regular file"
                : fmt::format("the devices are {}", fmt::join(names, ", ")))
      .help(near.empty() ? "name one of h100, h200, a100, cpu, or describe yours in a JSON file "
                           "(docs/memory.md)"
                         : fmt::format("did you mean '{}'?", near));
}

namespace {

// Work and time of a rank's own operators.
struct Work {
  double forward_flops = 0;
  double backward_flops = 0;
  double recompute_flops = 0;
  double seconds = 0;
};

Work work_of(const ir::Graph& graph, const cost::Device& device) {
  Work work;
  for (const ir::Node& node : graph.nodes()) {
    const cost::Cost cost = node_cost(graph, node);
    work.seconds += cost::seconds(device, cost, is_wide(graph, node));
    double& flops = node.phase == "forward"     ? work.forward_flops
                    : node.phase == "recompute" ? work.recompute_flops
                                                : work.backward_flops;
    flops += cost.flops;
  }
  return work;
}

// What of its collectives keeps a rank from computing, where they run beside computation.
// `collectives`: seconds, in the program's order.
double exposed_seconds(const executor::Program& program, const std::vector<double>& collectives,
                       const cost::Device& device) {
  const ir::Graph& graph = program.graph();
  std::vector<double> ended;
  double computing = 0;
  double now = 0;
  for (size_t step = 0; step < graph.nodes().size(); ++step) {
    const ir::Node& node = graph.nodes()[step];
    if (ir::is_collective(node)) {
      const double begin = ended.empty() ? now : std::max(now, ended.back());
      ended.push_back(begin + collectives.at(ended.size()));
      continue;
    }
    if (const int count = program.ended_before(step); count > 0) {
      now = std::max(now, ended[static_cast<size_t>(count) - 1]);
    }
    const double seconds = cost::seconds(device, node_cost(graph, node), is_wide(graph, node));
    computing += seconds;
    now += seconds;
  }
  if (!ended.empty()) now = std::max(now, ended.back());
  return now - computing;
}

// Of a rank graph's inputs: what the model does not know are shards of its parameters.
std::vector<bool> parameter_inputs(const ir::Graph& graph, const LoadedModel& model) {
  std::vector<bool> result;
  for (ValueId input : graph.inputs()) {
    const auto whole = model.graph.find(graph.name_of(input));
    result.push_back(!whole || model.roles.is_parameter[whole->index()]);
  }
  return result;
}

// What follows a step, at its peak: the sum of micro-batches, or the update.
struct AfterStep {
  int64_t working = 0;    // bytes
  int64_t gradients = 0;  // of these: the step's
};

// `gradients`: bytes of what the step leaves.
AfterStep after_step(const transforms::TrainingPlan& plan, int64_t rank, int64_t gradients,
                     std::shared_ptr<const ir::Graph> step,
                     const executor::CompileOptions& options) {
  TrainingGraphs graphs{.step = std::move(step), .accumulate = nullptr, .update = nullptr};
  graphs.update = std::make_shared<const ir::Graph>(transforms::emit_update(plan, rank));
  if (plan.accumulate > 1) {
    graphs.accumulate = std::make_shared<const ir::Graph>(transforms::emit_accumulate(plan, rank));
  }
  const std::vector<executor::Program> programs =
      executor::compile_turns(training_turns(graphs), options);
  AfterStep after{programs[1].memory().working, gradients};
  const int64_t last = programs.back().memory().working;  // with sums, instead of gradients
  if (last > after.working) after = {last, 0};
  return after;
}

// Instead of what a step takes: inputs and parameters as there, and what follows it works in.
executor::MemoryBuckets memory_after(const executor::MemoryBuckets& of_step,
                                     const AfterStep& after) {
  using enum executor::Bucket;
  executor::MemoryBuckets memory{};
  for (const auto bucket : {kParameters, kInputs}) {
    memory[static_cast<size_t>(bucket)] = of_step[static_cast<size_t>(bucket)];
  }
  memory[static_cast<size_t>(kOutputs)] = after.gradients;
  memory[static_cast<size_t>(kTemporaries)] = after.working - after.gradients;
  return memory;
}

int64_t sum(const executor::MemoryBuckets& memory) {
  return std::accumulate(memory.begin(), memory.end(), int64_t{0});
}

// What a rank takes, whose step has been compiled and takes `memory`. `after`: nothing without an
// optimizer.
void add_memory(const executor::Program& step, const executor::MemoryBuckets& memory,
                const transforms::TrainingBytes& kept, const AfterStep& after, int64_t rank,
                Prediction& prediction) {
  const int64_t arena = step.memory().arena;
  const int64_t outside = sum(memory) - arena + kept.optimizer_state + kept.gradient_sums;
  const RankMemory taken{.outside = outside,
                         .arena = arena,
                         .buffers = step.buffers(),
                         .after_step = after.working > 0 ? outside + after.working : 0};
  prediction.arena = std::max(prediction.arena, arena);
  prediction.ranks.push_back(taken);
  if (taken.most() <= prediction.peak) return;
  prediction.peak = taken.most();
  prediction.memory = after.working > arena ? memory_after(memory, after) : memory;
  prediction.kept = kept;
  prediction.rank = rank;
}

}  // namespace

int64_t DeviceArguments::memory_bytes(const cost::Device& loaded) const {
  return memory ? parse_bytes(*memory, "--memory") : static_cast<int64_t>(loaded.memory);
}

void add_device_options(CLI::App& command, DeviceArguments& arguments) {
  command.add_option("--memory", arguments.memory, "Of one rank; the device's when left out")
      ->type_name("BYTES");
  command.add_option("--device", arguments.device, "h100, h200, a100, cpu, or a JSON file")
      ->type_name("DEVICE")
      ->capture_default_str();
}

Prediction predict(const LoadedModel& model, const transforms::SpmdProgram& program,
                   const cost::Device& device, bool overlap) {
  Prediction prediction;
  std::vector<double> collectives;
  for (const auto& record : transforms::list_collectives(program)) {
    prediction.bytes_sent += record.bytes_per_rank;
    collectives.push_back(
        cost::collective_seconds(device, static_cast<double>(record.bytes_per_rank)));
    prediction.collective_seconds += collectives.back();
  }
  prediction.collectives = static_cast<int64_t>(collectives.size());
  prediction.exposed_seconds = prediction.collective_seconds;
  executor::CompileOptions options;
  options.overlap = overlap;
  for (int64_t rank : rank_kinds(program)) {
    const auto graph = std::make_shared<const ir::Graph>(rank_graph(program, rank));
    const executor::Program compiled = executor::compile(graph, options);
    transforms::TrainingBytes kept;
    AfterStep after;
    if (program.exchange != nullptr) {
      kept = transforms::training_bytes(program.exchange->plan, rank);
      after = after_step(program.exchange->plan, rank, kept.gradients, graph, options);
    }
    add_memory(compiled, executor::memory_at_peak(compiled, parameter_inputs(*graph, model)), kept,
               after, rank, prediction);
    const Work work = work_of(*graph, device);
    if (work.seconds <= prediction.compute_seconds) continue;
    prediction.compute_seconds = work.seconds;
    prediction.forward_flops = work.forward_flops;
    prediction.backward_flops = work.backward_flops;
    prediction.recompute_flops = work.recompute_flops;
    if (overlap) prediction.exposed_seconds = exposed_seconds(compiled, collectives, device);
  }
  return prediction;
}

Json to_json(const Prediction& prediction) {
  Json memory = Json::object();
  for (size_t k = 0; k < executor::kBuckets; ++k) {
    memory[std::string(name_of(static_cast<executor::Bucket>(k)))] = prediction.memory[k];
  }
  if (prediction.kept.optimizer_state > 0) {
    memory["optimizer state"] = prediction.kept.optimizer_state;
  }
  if (prediction.kept.gradient_sums > 0) memory["gradient sums"] = prediction.kept.gradient_sums;
  return {{"peak_bytes", prediction.peak},
          {"planned_peak_bytes", prediction.arena},
          {"peak_rank", prediction.rank},
          {"memory_bytes", memory},
          {"collectives", prediction.collectives},
          {"bytes_sent", prediction.bytes_sent},
          {"forward_flops", prediction.forward_flops},
          {"backward_flops", prediction.backward_flops},
          {"recompute_flops", prediction.recompute_flops},
          {"compute_seconds", prediction.compute_seconds},
          {"collective_seconds", prediction.collective_seconds},
          {"exposed_seconds", prediction.exposed_seconds},
          {"seconds", prediction.seconds()}};
}

}  // namespace autosp::cli

#include "prediction.h"

#include <charconv>
#include <cmath>
#include <fstream>

#include "base/error.h"
#include "executor/program.h"
#include "sharded_folder.h"
#include "transforms/spmd/emit_ranks.h"

namespace autosp::cli {

using Json = nlohmann::ordered_json;

int64_t parse_bytes(const std::string& text, const std::string& option) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string unit(end, text.data() + text.size());
  std::erase(unit, ' ');
  constexpr std::pair<std::string_view, double> kUnits[] = {
      {"", 1},     {"B", 1},    {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0},
      {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9},     {"TB", 1e12},       {"TiB", 1099511627776.0}};
  const auto* const known =
      std::ranges::find(kUnits, unit, &std::pair<std::string_view, double>::first);
  const double bytes = known == std::end(kUnits) ? -1 : value * known->second;
  if (error != std::errc() || !(bytes >= 1) || bytes > 1e17) {
    throw Error("{} takes a number of bytes, not '{}'", option, text)
        .help("for example: 80GiB, 512MiB, 24GB");
  }
  return std::llround(bytes);
}

namespace {

double number(const Json& json, const char* field, double otherwise, const std::string& file) {
  if (!json.contains(field)) return otherwise;
  if (!json[field].is_number() || json[field].get<double>() <= 0) {
    throw Error("'{}': '{}' is not a number above 0", file, field)
        .help("rates are per second, memory is in bytes");
  }
  return json[field].get<double>();
}

cost::Device read_device(const std::string& file) {
  std::ifstream stream(file);
  const Json json = Json::parse(stream, nullptr, false);
  if (!json.is_object()) {
    throw Error("'{}' does not describe a device", file)
        .help(
            "give a JSON object with some of: like, name, memory, product, product_wide, "
            "attention, attention_grad, bandwidth, link, latency");
  }
  cost::Device device = *cost::find_device("h100");
  if (json.contains("like")) {
    const auto like =
        cost::find_device(json["like"].is_string() ? json["like"].get<std::string>() : "");
    if (!like)
      throw Error("'{}': 'like' is no known device", file).help("known: h100, h200, a100, cpu");
    device = *like;
  }
  device.name =
      json.contains("name") && json["name"].is_string() ? json["name"].get<std::string>() : file;
  for (const auto& [field, rate] : {std::pair{"memory", &device.memory},
                                    {"product", &device.product},
                                    {"product_wide", &device.product_wide},
                                    {"attention", &device.attention},
                                    {"attention_grad", &device.attention_grad},
                                    {"bandwidth", &device.bandwidth},
                                    {"link", &device.link},
                                    {"latency", &device.latency}}) {
    *rate = number(json, field, *rate, file);
  }
  return device;
}

std::vector<ir::Type> types(const ir::Graph& graph, const std::vector<ValueId>& values) {
  std::vector<ir::Type> result;
  for (ValueId id : values) result.push_back(id ? graph.type(id) : ir::Type{});
  return result;
}

bool is_wide(const ir::Graph& graph, const ir::Node& node) {
  return node.input(0) && ir::element_size(graph.type(node.input(0)).dtype) >= 4;
}

}  // namespace

cost::Device load_device(const std::string& name_or_file) {
  if (const auto known = cost::find_device(name_or_file)) return *known;
  if (std::filesystem::exists(name_or_file)) return read_device(name_or_file);
  std::vector<std::string> names;
  for (const cost::Device& device : cost::known_devices()) names.push_back(device.name);
  throw Error("'{}' is neither a known device nor a file", name_or_file)
      .help(fmt::format("the devices are {}; others are described in a JSON file",
                        fmt::join(names, ", ")));
}

Prediction predict(const LoadedModel& model, const transforms::SpmdProgram& program,
                   const cost::Device& device) {
  Prediction prediction;
  const auto graph = std::make_shared<const ir::Graph>(rank_graph(program, 0));
  const executor::Program compiled = executor::compile(graph);
  std::vector<bool> is_parameter;
  for (ValueId input : model.graph.inputs()) {
    is_parameter.push_back(model.roles.is_parameter[input.index()]);
  }
  prediction.arena = compiled.memory().arena;
  prediction.memory = executor::memory_at_peak(compiled, is_parameter);
  for (int64_t bytes : prediction.memory) prediction.peak += bytes;

  for (const ir::Node& node : graph->nodes()) {
    const cost::Cost cost =
        cost::operator_cost(node, types(*graph, node.inputs), types(*graph, node.outputs),
                            cost::visible_fraction(*graph, node));
    prediction.compute_seconds += cost::seconds(device, cost, is_wide(*graph, node));
    double& flops = node.phase == "forward"     ? prediction.forward_flops
                    : node.phase == "recompute" ? prediction.recompute_flops
                                                : prediction.backward_flops;
    flops += cost.flops;
  }
  for (const auto& record : transforms::list_collectives(program)) {
    ++prediction.collectives;
    prediction.bytes_sent += record.bytes_per_rank;
    prediction.collective_seconds +=
        cost::collective_seconds(device, static_cast<double>(record.bytes_per_rank));
  }
  return prediction;
}

Json to_json(const Prediction& prediction) {
  Json memory = Json::object();
  for (size_t k = 0; k < executor::kBuckets; ++k) {
    memory[std::string(name_of(static_cast<executor::Bucket>(k)))] = prediction.memory[k];
  }
  return {{"peak_bytes", prediction.peak},
          {"planned_peak_bytes", prediction.arena},
          {"memory_bytes", memory},
          {"collectives", prediction.collectives},
          {"bytes_sent", prediction.bytes_sent},
          {"forward_flops", prediction.forward_flops},
          {"backward_flops", prediction.backward_flops},
          {"recompute_flops", prediction.recompute_flops},
          {"compute_seconds", prediction.compute_seconds},
          {"collective_seconds", prediction.collective_seconds},
          {"seconds", prediction.seconds()}};
}

}  // namespace autosp::cli

// autosp-onnx inspect MODEL: what the model is and how far it can be split.
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "command.h"
#include "json_text.h"
#include "model_arguments.h"

namespace autosp::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFooter = R"(
Examples:
  autosp-onnx inspect model.onnx --dim seq=4096
  autosp-onnx inspect model.onnx --dims                lists the symbolic dimensions to bind
  autosp-onnx inspect model.onnx --dim seq=4096 --print-after simplify_views)";

struct Arguments {
  ModelArguments model;
  PassArguments passes;
  bool dims = false;
  bool json = false;
};

struct Findings {
  int64_t parameters = 0;
  int64_t parameter_bytes = 0;
  int64_t sequence = 0;
  int64_t most_ranks = 0;  // that can share it
  int64_t kv_heads = 0;
  int64_t head_groups = 0;
  shard::AttentionSizes attention;
  int64_t layers = 0;
  std::map<std::string, int64_t> operators;

  int64_t query_heads() const { return kv_heads * head_groups; }  // 0: none were found
  std::vector<int64_t> sp_by_heads_alone() const { return shard::sp_by_heads_alone(attention); }
};

// Where attention was left as exported: scores forward, and their gradient backward.
int64_t count_unfused_layers(const shard::Plan& plan) {
  const auto& two_home = plan.attention.two_home_values;
  const auto makes_scores = [&](NodeId id) {
    return std::ranges::any_of(plan.graph().node(id).outputs, [&](ValueId output) {
      return output && std::ranges::find(two_home, output) != two_home.end();
    });
  };
  return std::ranges::count_if(plan.attention.contractions, makes_scores) / 2;
}

Findings find(const LoadedModel& model) {
  Findings findings;
  const ir::Graph& graph = model.graph;
  for (size_t v = 0; v < graph.values().size(); ++v) {
    if (!model.roles.is_parameter[v]) continue;
    ++findings.parameters;
    findings.parameter_bytes += graph.values()[v].type.num_bytes();
  }
  for (const ir::Node& node : graph.nodes()) {
    ++findings.operators[node.domain.empty() ? node.op : node.domain + "::" + node.op];
  }
  const shard::Plan plan = shard::make_plan(graph, model.roles, {});
  findings.sequence = plan.sequence_extent;
  findings.most_ranks = plan.most_sequence_ranks;
  findings.kv_heads = plan.kv_heads;
  findings.head_groups = plan.head_groups;
  findings.attention = plan.attention_sizes();
  findings.layers = static_cast<int64_t>(model.attention.size());
  if (findings.layers == 0) findings.layers = count_unfused_layers(plan);
  return findings;
}

int print_dims(const Arguments& arguments) {
  const auto dims = onnx_io::symbolic_dims(arguments.model.model);
  if (arguments.json) {
    Json report = Json::array();
    for (const auto& dim : dims) report.push_back({{"name", dim.name}, {"uses", dim.uses}});
    fmt::print("{}\n", json_text(report));
    return 0;
  }
  if (dims.empty()) fmt::print("every input has a fixed shape\n");
  for (const auto& dim : dims) fmt::print("{:<16} {}\n", dim.name, fmt::join(dim.uses, ", "));
  return 0;
}

Json attention_json(const LoadedModel& model) {
  Json regions = Json::array();
  for (const transforms::AttentionRegion& region : model.attention) {
    Json entry = {{"name", region.name}, {"fused", region.fused}};
    if (region.fused) {
      entry["backward"] = region.backward;
      entry["heads"] = region.heads;
      entry["kv_heads"] = region.kv_heads;
      entry["scale"] = region.scale;
      entry["softcap"] = region.softcap;
      entry["mask"] = region.mask;
      entry["dropout"] = region.dropout;
      entry["dead_rows"] = region.dead_rows;
    } else {
      entry["reason"] = region.reason;
    }
    regions.push_back(std::move(entry));
  }
  return regions;
}

Json to_json(const LoadedModel& model, const Findings& findings) {
  const ir::Graph& graph = model.graph;
  const auto tags = [&](const std::vector<shard::DimTag>& list) {
    Json result = Json::array();
    for (const shard::DimTag& tag : list) {
      result.push_back(fmt::format("{}:{}", graph.name_of(tag.value), tag.dim));
    }
    return result;
  };
  Json gradients = Json::object();
  for (const shard::Gradient& gradient : model.roles.gradients) {
    gradients[gradient.parameter] = graph.outputs()[gradient.output].name;
  }
  return {{"model", model.path.string()},
          {"opset", graph.opset},
          {"nodes", graph.nodes().size()},
          {"operators", findings.operators},
          {"parameters", findings.parameters},
          {"parameter_bytes", findings.parameter_bytes},
          {"loss", model.roles.loss ? Json(graph.outputs()[*model.roles.loss].name) : Json()},
          {"gradients", gradients},
          {"sequence", tags(model.roles.sequence)},
          {"batch", tags(model.roles.batch)},
          {"sequence_extent", findings.sequence},
          {"kv_heads", findings.kv_heads},
          {"query_heads", findings.query_heads()},
          {"sp_by_heads_alone", findings.sp_by_heads_alone()},
          {"splits_queries", findings.attention.splits_queries},
          {"attention_layers", findings.layers},
          {"attention", attention_json(model)},
          {"reasons", model.roles.reasons}};
}

std::string limit_text(const Findings& findings) {
  if (!findings.attention.found) {
    return fmt::format("sp up to {} (the sequence); no attention was found", findings.most_ranks);
  }
  std::vector<int64_t> sizes = findings.sp_by_heads_alone();
  std::erase_if(sizes, [&](int64_t sp) { return sp > findings.most_ranks; });
  return fmt::format(
      "sp {} by heads alone: {} query heads ({} KV heads x {} groups)\n"
      "  any other sp up to {} ({}) {}",
      fmt::join(sizes, ", "), findings.attention.kv_heads * findings.attention.head_groups,
      findings.attention.kv_heads, findings.attention.head_groups, findings.most_ranks,
      findings.most_ranks < findings.sequence ? "blocks of the sequence" : "positions",
      findings.attention.splits_queries ? "splits queries too and gathers keys and values (axis r)"
                                        : "gathers attention");
}

void print_report(const LoadedModel& model, const Findings& findings) {
  const ir::Graph& graph = model.graph;
  fmt::print("{}: {} nodes (opset {}), {} parameters ({})\n", model.path.filename().string(),
             graph.nodes().size(), graph.opset, findings.parameters,
             format_bytes(static_cast<double>(findings.parameter_bytes)));
  fmt::print("roles\n");
  for (const std::string& reason : model.roles.reasons) fmt::print("  {}\n", reason);
  fmt::print("data inputs\n");
  for (ValueId input : graph.inputs()) {
    if (model.roles.is_parameter[input.index()]) continue;
    fmt::print("  {:<24} {}\n", graph.name_of(input), ir::to_string(graph.type(input)));
  }
  fmt::print("attention\n  {} layers\n", findings.layers);
  for (const transforms::AttentionRegion& region : model.attention) {
    fmt::print("  {}\n", region.to_string());
  }
  fmt::print("limits\n  {}\n", limit_text(findings));
}

int run(const Arguments& arguments) {
  if (arguments.dims) return print_dims(arguments);
  const LoadedModel model = load_model(arguments.model, arguments.passes);
  const Findings findings = find(model);
  if (arguments.json) {
    fmt::print("{}\n", json_text(to_json(model, findings)));
  } else {
    print_report(model, findings);
  }
  return 0;
}

}  // namespace

void add_inspect(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "inspect", "Shows a model's roles, its attention layers and what limits sp");
  command->footer(kFooter);
  add_model_options(*command, arguments->model);
  command->add_flag("--dims", arguments->dims, "Lists symbolic dimensions and where they are used");
  command->add_flag("--json", arguments->json, "Prints the findings as JSON");
  add_pass_options(*command, arguments->passes);
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace autosp::cli

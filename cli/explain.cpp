// autosp-onnx explain MODEL VALUE: why a value is laid out as it is.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "command.h"
#include "json_text.h"
#include "model_arguments.h"
#include "prediction.h"
#include "ring_choice.h"
#include "transforms/spmd/program.h"

namespace autosp::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFooter = R"(
VALUE is a name in the graph after the passes, as 'inspect --print-after PASS' shows them; the
model's own names mostly survive.

Example:
  autosp-onnx explain models/graphs/llama.onnx view_21_attention --dim seq=40 --sp 4

In its lines, 'factors' names the dimensions: 40#622 is a dimension of 40 elements, and every
dimension of any value that is numbered 622 is the same one. (4#1383 2#2004) is one dimension of 8
that consists of two, 4 times 2.)";

struct Arguments {
  ModelArguments model;
  std::string value;
  PassArguments passes;
  PlanArguments plan;
  bool json = false;
};

ValueId find_value(const ir::Graph& graph, const std::string& name) {
  if (const auto value = graph.find(name)) return *value;
  std::vector<std::string> names;
  for (const ir::Output& output : graph.outputs()) {
    if (output.name == name) return output.value;
    names.push_back(output.name);
  }
  for (const ir::Value& value : graph.values()) names.push_back(value.name);
  Error error("the graph has no value '{}'", name);
  const std::string near = nearest_name(name, names);
  error.note(near.empty() ? fmt::format("it has {} values, none of a similar name", names.size())
                          : fmt::format("the nearest name is '{}'", near));
  throw error.help(
      "passes may have rewritten it: 'inspect MODEL --print-after PASS' shows the graph");
}

// How a rank is fed a data input: the layout that its readers share.
std::optional<std::string> fed_layout(const shard::Plan& plan, ValueId value) {
  const auto& inputs = plan.graph().inputs();
  const auto found = std::ranges::find(inputs, value);
  if (found == inputs.end()) return std::nullopt;
  const transforms::SpmdProgram program = transforms::build_program(plan);
  const transforms::PlacedId fed = program.inputs[static_cast<size_t>(found - inputs.begin())];
  return shard::to_string(program.at(fed).layout, plan.mesh);
}

int run(const Arguments& arguments) {
  const LoadedModel model = load_model(arguments.model, arguments.passes);
  const shard::Plan plan =
      plan_model(model, with_ring_chosen(arguments.plan, model, {}, load_device("h100")));
  const ValueId value = find_value(model.graph, arguments.value);
  const std::optional<std::string> fed = fed_layout(plan, value);
  std::string text = shard::explain(plan, value);
  if (fed) {
    // Of the lines, those on its dimensions.
    text = text.substr(0, text.find("  layout ")) +
           fmt::format("  layout   {}\n  it is an input: a rank is fed what its readers share\n",
                       *fed);
  }
  if (arguments.json) {
    const Json report{
        {"value", arguments.value},
        {"type", ir::to_string(model.graph.type(value))},
        {"mesh", plan.mesh.to_string()},
        {"layout", fed.value_or(shard::to_string(plan.value_layout(value), plan.mesh))},
        {"explanation", text}};
    fmt::print("{}\n", json_text(report));
  } else {
    fmt::print("{}{}", text, text.ends_with('\n') ? "" : "\n");
  }
  return 0;
}

}  // namespace

void add_explain(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand(
      "explain", "Says how a value is split, why, and what the alternative would cost");
  command->footer(kFooter);
  add_model_options(*command, arguments->model);
  command->add_option("value", arguments->value, "The value's name")
      ->required()
      ->type_name("VALUE");
  add_plan_options(*command, arguments->plan);
  command->add_flag("--json", arguments->json, "Prints the explanation as JSON");
  add_pass_options(*command, arguments->passes);
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace autosp::cli

#include "model_arguments.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <limits>
#include <optional>

#include "base/context.h"
#include "base/error.h"
#include "ir/parallel_operators.h"
#include "ir/rewriter.h"
#include "signature.h"

namespace autosp::cli {

namespace {

std::optional<int64_t> whole_number(const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

CLI::Validator at_least_one() {
  return {[](const std::string& text) -> std::string {
            if (whole_number(text).value_or(0) >= 1) return {};
            return fmt::format("takes a whole number of 1 or more, not '{}'", text);
          },
          ""};
}

CLI::Validator at_most(int64_t most) {
  return {[most](const std::string& text) -> std::string {
            const int64_t value = whole_number(text).value_or(-1);
            if (value >= 0 && value <= most) return {};
            return fmt::format("takes a whole number from 0 to {}, not '{}'", most, text);
          },
          ""};
}

namespace {

// More than 0 and at most `most`; what is not a number compares false.
CLI::Validator positive_number(const std::string& what, double most) {
  return {[=](const std::string& text) -> std::string {
            double value = 0;
            const auto [end, error] =
                std::from_chars(text.data(), text.data() + text.size(), value);
            const bool number = error == std::errc() && end == text.data() + text.size();
            if (number && value > 0 && value <= most) return {};
            return fmt::format("takes {}, more than 0 and at most {}, not '{}'", what, most, text);
          },
          ""};
}

}  // namespace

CLI::Validator seconds() { return positive_number("seconds", 1e6); }

void add_step_option(CLI::App& command, std::optional<int64_t>& step) {
  command
      .add_option("--step", step,
                  "The number of the training step, from which dropout and other random operators "
                  "draw; 0, or what the feed says, when left out")
      ->check(at_most(std::numeric_limits<int64_t>::max()))
      ->type_name("N");
}

CLI::Validator tolerance() { return positive_number("a relative error", 1); }

void add_model_options(CLI::App& command, ModelArguments& arguments) {
  command.add_option("model", arguments.model, "The training graph (.onnx)")
      ->required()
      ->type_name("MODEL");
  command
      .add_option("--dim", arguments.dims,
                  "Binds a symbolic dimension, as in --dim seq=4096; repeat for more")
      ->allow_extra_args(false)
      ->type_name("NAME=VALUE");
  command
      .add_option("--seq", arguments.sequence,
                  "A sequence dimension, as in --seq input_ids:1; found by itself when left out")
      ->allow_extra_args(false)
      ->type_name("INPUT:AXIS");
  command.add_option("--batch", arguments.batch, "A batch dimension; found by itself likewise")
      ->allow_extra_args(false)
      ->type_name("INPUT:AXIS");
  command.add_option("--loss", arguments.loss, "The output that is the loss")->type_name("OUTPUT");
  command
      .add_option("--grad", arguments.gradients,
                  "The output that is a parameter's gradient, as in --grad w=w.grad")
      ->allow_extra_args(false)
      ->type_name("PARAMETER=OUTPUT");
}

void add_pass_options(CLI::App& command, PassArguments& arguments) {
  command
      .add_option("--attention", arguments.attention,
                  "fused: attention becomes one operator that forms no scores; unfused: it stays "
                  "as exported")
      ->check(CLI::IsMember({"fused", "unfused"}))
      ->capture_default_str();
  command
      .add_option("--passes", arguments.passes,
                  fmt::format("Runs these passes only, in this order, comma-separated: {}",
                              fmt::join(transforms::pass_names(), ", ")))
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("LIST")
      ->group("Looking inside");
  command
      .add_option("--print-after", arguments.print_after,
                  "Prints the graph after a pass, in ONNX's text format; 'import' is the first")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("PASS")
      ->group("Looking inside");
  command.add_flag("--timing", arguments.timing, "Prints the seconds and nodes of every pass")
      ->group("Looking inside");
}

void add_feed_options(CLI::App& command, FeedArguments& arguments) {
  command.add_option("--feed", arguments.feed, "The graph inputs, whole; generated when left out")
      ->type_name("NPZ");
  command
      .add_option("--dim", arguments.dims,
                  "The length of generated inputs, where the model was sharded with --dim "
                  "NAME=dynamic; the one planned for when left out")
      ->type_name("NAME=VALUE")
      ->allow_extra_args(false);
  command.add_option("--seed", arguments.seed, "Of generated inputs")
      ->check(at_most(std::numeric_limits<int64_t>::max()))
      ->capture_default_str();
}

void add_timeout_option(CLI::App& command, double& seconds) {
  command
      .add_option("--timeout", seconds,
                  "Seconds that a collective waits for other ranks before the run ends")
      ->check(cli::seconds())
      ->capture_default_str();
}

std::pair<std::string, std::string> split_assignment(const std::string& text,
                                                     const std::string& option) {
  const size_t equals = text.rfind('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) {
    throw Error("{} takes NAME=VALUE, not '{}'", option, text)
        .note("given on the command line")
        .help(fmt::format("put a name, '=' and a value after {}", option));
  }
  return {text.substr(0, equals), text.substr(equals + 1)};
}

int64_t parse_count(const std::string& text, const std::string& option, const std::string& help) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1) {
    throw Error("{} takes a whole number of 1 or more, not '{}'", option, text)
        .note("given on the command line")
        .help(help);
  }
  if (value > std::numeric_limits<int32_t>::max()) {
    throw Error("{}: {} is too large; at most {} is supported", option, value,
                std::numeric_limits<int32_t>::max())
        .note("products of a few such numbers must stay within 64 bits")
        .help("give a smaller number");
  }
  return value;
}

std::map<std::string, int64_t> parse_counts(const std::vector<std::string>& assignments,
                                            const std::string& option) {
  std::map<std::string, int64_t> result;
  for (const std::string& text : assignments) {
    const auto [name, value] = split_assignment(text, option);
    if (option == "--dim" && value.starts_with("dynamic")) {
      throw Error("--dim {}={}: this command takes a number", name, value)
          .note("'shard' alone leaves a dimension open")
          .help(fmt::format("give a length: --dim {}=4096", name));
    }
    if (!result.emplace(name, parse_count(value, option)).second) {
      throw Error("{} gives '{}' twice", option, name)
          .note(fmt::format("the second time as '{}'", text))
          .help("give each name once");
    }
  }
  return result;
}

namespace {

shard::RoleOptions role_options(const ModelArguments& arguments) {
  shard::RoleOptions options;
  options.sequence = arguments.sequence;
  options.batch = arguments.batch;
  if (!arguments.loss.empty()) options.loss = arguments.loss;
  for (const std::string& text : arguments.gradients) {
    const auto [parameter, output] = split_assignment(text, "--grad");
    options.gradients[parameter] = output;
  }
  for (const onnx_io::SymbolicDim& dim : onnx_io::symbolic_dims(arguments.model)) {
    for (const std::string& use : dim.uses) {
      const size_t colon = use.rfind(':');
      options.named_dims.push_back(
          {dim.name, use.substr(0, colon), std::stoi(use.substr(colon + 1))});
    }
  }
  return options;
}

void check_pass_names(const PassArguments& arguments) {
  for (const std::string& name : arguments.print_after) {
    if (name != "import") transforms::find_pass(name);
  }
}

void print_timings(const std::vector<transforms::PassTiming>& timings) {
  for (const transforms::PassTiming& timing : timings) {
    fmt::print(stderr, "{:<34} {:>9.3f} s  {:>6} -> {:>6} nodes\n", timing.name, timing.seconds,
               timing.nodes_before, timing.nodes_after);
  }
}

}  // namespace

namespace {

void check_apart(const shard::Roles& roles, const ir::Graph& graph) {
  for (const shard::DimTag& tag : roles.sequence) {
    const bool both = std::ranges::any_of(roles.batch, [&](const shard::DimTag& other) {
      return other.value == tag.value && other.dim == tag.dim;
    });
    if (!both) continue;
    throw Error("axis {} of '{}' is a sequence and a batch dimension", tag.dim,
                graph.name_of(tag.value))
        .note("ranks of --sp share one sequence, ranks of --dp share the batch")
        .help("give another axis with --seq or --batch");
  }
}

void check_not_sharded(const ir::Graph& graph, const std::filesystem::path& path) {
  const auto sharded = signature_of(graph);
  if (!sharded) return;
  Error error("'{}' is {}", path.string(),
              sharded->rank.empty()        ? "a rank of a model that is sharded already"
              : sharded->rank == kAllRanks ? fmt::format("a model that is sharded already: all {} "
                                                         "ranks in one graph",
                                                         sharded->ranks)
                                           : fmt::format("already rank {} of {} of a sharded model",
                                                         sharded->rank, sharded->ranks));
  throw error.note("'shard' wrote it")
      .help("give the model that it was made from; the manifest.json beside it names it");
}

void check_not_parallel(const ir::Graph& graph) {
  for (const ir::Node& node : graph.nodes()) {
    if (!ir::moves_data_between_ranks(node.domain, node.op)) continue;
    throw ir::already_parallel(node.name,
                               node.domain + (node.domain.empty() ? "" : "::") + node.op);
  }
}

// An update gives parameters new values: they cannot be part of the graph. Returns whether any was.
bool train_initializers(LoadedModel& model) {
  std::set<std::string> names;
  for (const shard::Gradient& gradient : model.roles.gradients) {
    const auto value = model.graph.find(gradient.parameter);
    if (!value || model.graph.value(*value).kind == ir::ValueKind::kInput) continue;
    if (names.insert(gradient.parameter).second) {
      model.initial.push_back(model.graph.value(*value));
    }
  }
  if (!names.empty()) model.graph = ir::initializers_as_inputs(model.graph, names);
  return !names.empty();
}

}  // namespace

LoadedModel load_model(const ModelArguments& arguments, const PassArguments& passes) {
  check_pass_names(passes);
  const auto wants_print = [&](std::string_view name) {
    return std::ranges::find(passes.print_after, name) != passes.print_after.end();
  };
  LoadedModel model{.path = arguments.model,
                    .bindings = {.dims = parse_counts(arguments.dims, "--dim"),
                                 .input_shapes = {},
                                 .parameters = {}},
                    .seed = arguments.seed,
                    .graph = {},
                    .roles = {},
                    .attention = {},
                    .timings = {},
                    .initial = {}};
  const shard::RoleOptions role_choices = role_options(arguments);
  for (const auto& [parameter, gradient] : role_choices.gradients) {
    model.bindings.parameters.insert(parameter);
  }
  const auto begin = std::chrono::steady_clock::now();
  model.graph = onnx_io::import_model(arguments.model, model.bindings);
  check_not_sharded(model.graph, model.path);
  check_not_parallel(model.graph);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  const size_t nodes = model.graph.nodes().size();
  model.timings.push_back(
      {.name = "import", .seconds = taken.count(), .nodes_before = nodes, .nodes_after = nodes});
  if (wants_print("import")) fmt::print("{}", onnx_io::print_text(model.graph));
  const auto print_after = [&](const transforms::Pass& pass, const ir::Graph& graph) {
    if (wants_print(pass.name)) fmt::print("{}", onnx_io::print_text(graph));
  };
  transforms::PipelineOptions options{
      .passes = passes.passes,
      .context = {.roles = role_choices,
                  .draws = {.seed = static_cast<uint64_t>(arguments.seed),
                            .step_input = kStepInput},
                  .attention = &model.attention},
      .after = print_after,
      .timings = &model.timings};
  const auto find_roles = [&] {
    model.roles = with_context(
        fmt::format("while looking for the roles of the inputs and outputs of '{}'",
                    arguments.model.string()),
        "'autosp-onnx inspect MODEL' shows what is found; --seq, --batch, --loss and --grad "
        "override",
        [&] { return shard::detect_roles(model.graph, role_choices); });
    check_apart(model.roles, model.graph);
  };
  model.graph = transforms::run_passes(model.graph, options);
  find_roles();
  if (arguments.train && train_initializers(model)) find_roles();
  if (passes.passes.empty() && passes.attention == "fused") {
    for (const transforms::Pass& pass : transforms::attention_passes()) {
      options.passes.emplace_back(pass.name);
    }
    model.graph = transforms::run_passes(model.graph, options);
    find_roles();
  }
  if (passes.timing) print_timings(model.timings);
  return model;
}

std::vector<std::filesystem::path> files_read(const std::filesystem::path& model,
                                              const std::vector<std::filesystem::path>& others) {
  std::vector<std::filesystem::path> files = {model};
  for (const std::string& location : onnx_io::data_locations(model)) {
    files.push_back((model.parent_path() / location).lexically_normal());
  }
  for (const std::filesystem::path& other : others) {
    if (std::filesystem::is_regular_file(other)) files.push_back(std::filesystem::absolute(other));
  }
  return files;
}

std::string sequence_dimension(const LoadedModel& model) {
  for (const onnx_io::SymbolicDim& dim : onnx_io::symbolic_dims(model.path)) {
    for (const shard::DimTag& tag : model.roles.sequence) {
      const std::string use = fmt::format("{}:{}", model.graph.name_of(tag.value), tag.dim);
      if (std::ranges::find(dim.uses, use) != dim.uses.end()) return dim.name;
    }
  }
  return "";
}

}  // namespace autosp::cli

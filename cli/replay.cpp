// autosp-onnx replay OUT NODE: one node of a rank graph on the operands of a step, again and again.
#include <algorithm>
#include <cstdio>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "command.h"
#include "executor/openblas.h"
#include "executor/program.h"
#include "feeds.h"
#include "figures.h"
#include "ir/operator_traits.h"
#include "json_text.h"
#include "model_arguments.h"
#include "node_cost.h"
#include "prediction.h"
#include "ranks.h"

namespace autosp::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMostThreads = 1024;

constexpr const char* kFooter = R"(
Runs the step once on every rank to capture the node's operands, then the node alone, on a rank; a
collective runs on all ranks. NODE is a name as 'run --trace' shows it. Operands that fit into a
cache stay there from one run to the next, which in a step they may not.

Examples:
  autosp-onnx replay out bmm_1_attention --feed inputs.npz
  autosp-onnx replay out bmm_1_attention --rank 3 --repeat 100 --json)";

struct Arguments {
  std::filesystem::path folder;
  std::string node;
  int64_t rank = 0;
  FeedArguments inputs;
  std::string device = "cpu";
  double timeout = 60;
  int threads_per_rank = 0;
  int repeat = 20;
  bool json = false;
};

// What every rank runs, and where the node is in it.
struct RankStep {
  executor::Program program;
  size_t step = 0;

  const ir::Graph& graph() const { return program.graph(); }
  const ir::Node& node() const { return graph().nodes()[step]; }
};

[[noreturn]] void no_such_node(const Arguments& arguments, const executor::Program& program,
                               const ir::Graph& written) {
  std::vector<std::string> names;
  for (const ir::Node& node : program.graph().nodes()) names.push_back(node.name);
  Error error("rank {} runs no node '{}'", arguments.rank, arguments.node);
  const bool absorbed = std::ranges::any_of(
      written.nodes(), [&](const ir::Node& node) { return node.name == arguments.node; });
  error.note(absorbed ? "its graph has one, which the executor makes part of the products that "
                        "read it"
                      : fmt::format("its graph has {} nodes", names.size()));
  const std::string near = nearest_name(arguments.node, names);
  throw error.help(near.empty() || absorbed ? "'run --trace' writes the names of all nodes that run"
                                            : fmt::format("did you mean '{}'?", near));
}

RankStep find_node(const Arguments& arguments, const std::shared_ptr<const ir::Graph>& graph,
                   int workers) {
  RankStep found{.program = executor::compile(graph, {.workers = workers})};
  const auto& nodes = found.graph().nodes();
  const auto node = std::ranges::find(nodes, arguments.node, &ir::Node::name);
  if (node == nodes.end()) no_such_node(arguments, found.program, *graph);
  found.step = static_cast<size_t>(node - nodes.begin());
  if (found.program.is_view(found.step)) {
    throw Error("{} is a view: nothing runs for it", found.graph().describe(*node))
        .note("its result has the bytes of its operand")
        .help("'run --trace' writes the names of all nodes that run");
  }
  return found;
}

std::string operand_name(size_t k) { return fmt::format("operand {}", k); }

// The graph of a rank with the node's operands as its outputs. Constants are known without a run.
std::shared_ptr<const ir::Graph> capturing(const RankStep& rank) {
  ir::Graph graph = rank.graph();
  const std::vector<ValueId>& inputs = rank.node().inputs;
  for (size_t k = 0; k < inputs.size(); ++k) {
    if (inputs[k] && !graph.is_constant(inputs[k])) {
      graph.add_output(operand_name(k), inputs[k]);
    }
  }
  return std::make_shared<const ir::Graph>(std::move(graph));
}

// The node on its own: operands that are no constants are inputs.
std::shared_ptr<const ir::Graph> alone(const RankStep& rank) {
  const ir::Node& node = rank.node();
  const ir::Graph& from = rank.graph();
  ir::Graph graph;
  graph.opset = from.opset;
  std::map<size_t, ValueId> known;  // an operand may be given twice
  std::vector<ValueId> inputs;
  for (size_t k = 0; k < node.inputs.size(); ++k) {
    const ValueId id = node.inputs[k];
    if (!id) {
      inputs.emplace_back();
      continue;
    }
    ValueId& operand = known[id.index()];
    if (!operand) {
      operand = from.is_constant(id) ? graph.add_named_constant(from.name_of(id), from.constant(id))
                                     : graph.add_input(operand_name(k), from.type(id));
    }
    inputs.push_back(operand);
  }
  std::vector<ir::Type> types;
  for (ValueId id : node.outputs) types.push_back(id ? from.type(id) : ir::Type{});
  const NodeId added =
      graph.add_node(node.op, inputs, types, node.attributes, node.domain, {}, node.name);
  for (size_t k = 0; k < node.outputs.size(); ++k) {
    const ValueId result = graph.node(added).output(k);
    if (result) graph.add_output(fmt::format("result {}", k), result);
  }
  return std::make_shared<const ir::Graph>(std::move(graph));
}

executor::Arrays operands_of(const ir::Graph& alone, const executor::Arrays& captured) {
  executor::Arrays feeds;
  for (ValueId id : alone.inputs()) {
    feeds[alone.name_of(id)] = captured.at(alone.name_of(id)).reshaped(alone.shape(id));
  }
  return feeds;
}

class Replay {
 public:
  explicit Replay(const Arguments& arguments)
      : arguments_(arguments),
        manifest_(at_given_length(onnx_io::read_manifest(arguments.folder), arguments.inputs.dims,
                                  arguments.inputs.feed)) {
    const auto ranks = static_cast<int64_t>(manifest_.ranks.size());
    if (arguments.rank >= ranks) {
      throw Error("there is no rank {}", arguments.rank)
          .note(fmt::format("'{}' is sharded over {} ranks, from 0 on", arguments.folder.string(),
                            ranks))
          .help(fmt::format("give --rank 0 to {}", ranks - 1));
    }
    options_.data_folder = arguments.folder;
    options_.timeout = arguments.timeout;
    options_.threads_per_rank = arguments.threads_per_rank > 0
                                    ? arguments.threads_per_rank
                                    : executor::default_blas_threads(static_cast<int>(ranks));
    for (int64_t rank = 0; rank < ranks; ++rank) {
      ranks_.push_back(find_node(arguments, load_rank(arguments.folder, manifest_, rank),
                                 options_.threads_per_rank));
    }
  }

  void run() {
    capture();
    std::vector<std::shared_ptr<const ir::Graph>> graphs;
    std::vector<executor::Arrays> feeds;
    for (size_t k = 0; k < ranks_.size(); ++k) {
      if (!ir::is_collective(chosen().node()) && k != index()) continue;
      graphs.push_back(alone(ranks_[k]));
      feeds.push_back(operands_of(*graphs.back(), captured_[k]));
    }
    options_.repeat = arguments_.repeat;
    const executor::RunResult result = executor::run_in_threads(graphs, feeds, options_);
    const executor::RankResult& own = result.ranks[result.ranks.size() > 1 ? index() : 0];
    seconds_ = own.seconds;
    for (const executor::CollectiveRecord& record : own.collectives) sent_ += record.bytes_sent;
  }

  Json to_json(const cost::Device& device) const {
    const cost::Cost cost = node_cost(chosen().graph(), chosen().node());
    const bool collective = cost.family == cost::Family::kCollective;
    const double bytes = collective ? static_cast<double>(sent_) : cost.bytes;
    const double attainable =
        collective ? cost::collective_seconds(device, bytes)
                   : cost::seconds(device, cost, is_wide(chosen().graph(), chosen().node()));
    Json operands = Json::array();
    for (ValueId id : chosen().node().inputs) {
      if (id) operands.push_back(ir::to_string(chosen().graph().type(id)));
    }
    Json results = Json::array();
    for (ValueId id : chosen().node().outputs) {
      if (id) results.push_back(ir::to_string(chosen().graph().type(id)));
    }
    return {{"node", arguments_.node},
            {"operator", chosen().node().op},
            {"family", name_of(cost.family)},
            {"rank", arguments_.rank},
            {"operands", operands},
            {"results", results},
            {"repeat", arguments_.repeat},
            {"threads_per_rank", options_.threads_per_rank},
            {"seconds", seconds_},
            {"flops", cost.flops},
            {"bytes", bytes},
            {"flops_per_second", cost.flops / seconds_},
            {"bytes_per_second", bytes / seconds_},
            {"device", device.name},
            {"attainable_seconds", attainable}};
  }

 private:
  size_t index() const { return static_cast<size_t>(arguments_.rank); }
  const RankStep& chosen() const { return ranks_[index()]; }

  void capture() {
    const executor::Arrays feeds =
        arguments_.inputs.feed.empty()
            ? generate_feeds(chosen().graph(), manifest_, arguments_.inputs.seed)
            : select_feeds(manifest_, executor::read_npz(arguments_.inputs.feed),
                           fmt::format("'{}'", arguments_.inputs.feed.string()));
    std::vector<std::shared_ptr<const ir::Graph>> graphs;
    std::vector<executor::Arrays> slices;
    for (size_t k = 0; k < ranks_.size(); ++k) {
      graphs.push_back(capturing(ranks_[k]));
      slices.push_back(rank_feeds(manifest_, feeds, static_cast<int64_t>(k)));
    }
    executor::RunResult result = executor::run_in_threads(graphs, slices, options_);
    for (executor::RankResult& rank : result.ranks) captured_.push_back(std::move(rank.outputs));
  }

  const Arguments& arguments_;
  onnx_io::Manifest manifest_;
  executor::RunOptions options_;
  std::vector<RankStep> ranks_;
  std::vector<executor::Arrays> captured_;  // by rank
  double seconds_ = 0;
  int64_t sent_ = 0;
};

std::string joined(const Json& types) {
  std::vector<std::string> names = types.get<std::vector<std::string>>();
  return fmt::format("{}", fmt::join(names, ", "));
}

void print_report(const Json& report) {
  const auto number = [&](const char* name) { return report[name].get<double>(); };
  fmt::print("{}: {} on rank {}\n", report["node"].get<std::string>(),
             report["operator"].get<std::string>(), report["rank"].get<int64_t>());
  fmt::print("  {:<12} {}\n", "operands", joined(report["operands"]));
  fmt::print("  {:<12} {}\n", "results", joined(report["results"]));
  fmt::print("  {:<12} {}, the median of {}\n", "time", format_seconds(number("seconds")),
             report["repeat"].get<int64_t>());
  const bool collective = report["family"] == "collective";
  fmt::print("  {:<12} {:.4g} FLOPs, {} {}\n", "work", number("flops"),
             format_bytes(number("bytes")), collective ? "sent" : "of operands and results");
  fmt::print("  {:<12} {:.4g} GFLOP/s, {:.4g} GB/s\n", "rate", number("flops_per_second") / 1e9,
             number("bytes_per_second") / 1e9);
  fmt::print("  {:<12} {} by the rates of '{}': {} of them reached\n", "attainable",
             format_seconds(number("attainable_seconds")), report["device"].get<std::string>(),
             format_share(number("attainable_seconds"), number("seconds")));
}

int run(const Arguments& arguments) {
  executor::restart_with_fast_openblas();
  const cost::Device device = load_device(arguments.device);
  Replay replay(arguments);
  replay.run();
  print_notices();
  const Json report = replay.to_json(device);
  if (arguments.json) {
    fmt::print("{}\n", json_text(report));
  } else {
    print_report(report);
  }
  return 0;
}

}  // namespace

void add_replay(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      app.add_subcommand("replay", "Runs one node of a sharded model alone and tells its rate");
  command->footer(kFooter);
  command->add_option("folder", arguments->folder, "What 'shard' wrote")
      ->required()
      ->type_name("OUT");
  command->add_option("node", arguments->node, "Its name in the rank graphs")
      ->required()
      ->type_name("NODE");
  command->add_option("--rank", arguments->rank, "Whose node")
      ->check(at_most(std::numeric_limits<int32_t>::max()))
      ->type_name("N")
      ->capture_default_str();
  add_feed_options(*command, arguments->inputs);
  command
      ->add_option("--device", arguments->device,
                   "Whose rates the node is held against: h100, h200, a100, cpu, or a JSON file")
      ->type_name("DEVICE")
      ->capture_default_str();
  command
      ->add_option("--threads-per-rank", arguments->threads_per_rank,
                   "Threads of the node's kernel; 0: the cores divided by the ranks")
      ->check(at_most(kMostThreads))
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--repeat", arguments->repeat, "Runs the node this often")
      ->check(at_least_one())
      ->type_name("N")
      ->capture_default_str();
  add_timeout_option(*command, arguments->timeout);
  command->add_flag("--json", arguments->json, "Prints the report as JSON");
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace autosp::cli

#include "report/collect.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "base/error.h"
#include "compare.h"
#include "executor/memory_buckets.h"
#include "executor/openblas.h"
#include "executor/run.h"
#include "feeds.h"
#include "ir/operator_traits.h"
#include "node_cost.h"
#include "prediction.h"
#include "ranks.h"
#include "report/layers.h"
#include "report/timeline.h"
#include "whole_model.h"

namespace autosp::cli {

namespace {

using executor::Bucket;
using executor::MemoryBuckets;
using onnx_io::Manifest;

constexpr size_t kMostPoints = 300;  // of a curve

std::vector<ReportBucket> named(const MemoryBuckets& memory) {
  std::vector<ReportBucket> buckets;
  for (size_t k = 0; k < executor::kBuckets; ++k) {
    buckets.push_back({std::string(name_of(static_cast<Bucket>(k))), memory[k]});
  }
  return buckets;
}

int64_t sum(const MemoryBuckets& memory) {
  return std::accumulate(memory.begin(), memory.end(), int64_t{0});
}

int64_t live(const MemoryBuckets& memory) {
  return sum(memory) - memory[static_cast<size_t>(Bucket::kGaps)];
}

std::vector<bool> parameter_inputs(const ir::Graph& graph, const Manifest& manifest) {
  std::vector<bool> result;
  for (ValueId id : graph.inputs()) {
    const auto input =
        std::ranges::find(manifest.inputs, graph.name_of(id), &onnx_io::ManifestInput::name);
    result.push_back(input != manifest.inputs.end() &&
                     input->role == onnx_io::InputRole::kParameter);
  }
  return result;
}

// Token numbers are a matrix of whole numbers; otherwise the first attention says how many there
// are.
std::optional<int64_t> tokens_of(const Manifest& manifest, const ReportLayers& layers) {
  for (const onnx_io::ManifestInput& input : manifest.inputs) {
    const bool whole =
        input.type.dtype == ir::DataType::kInt64 || input.type.dtype == ir::DataType::kInt32;
    if (input.role == onnx_io::InputRole::kData && whole && input.type.rank() == 2) {
      return input.type.num_elements();
    }
  }
  if (layers.count == 0) return std::nullopt;
  return layers.batch * layers.positions;
}

// Steps of equal number are one point, the one at which most is live.
ReportMemory memory_curve(const executor::Program& program, const std::vector<MemoryBuckets>& steps,
                          int64_t rank) {
  const std::vector<ir::Node>& nodes = program.graph().nodes();
  const auto backward = std::ranges::find_if(
      nodes, [](const ir::Node& node) { return !node.phase.empty() && node.phase != "forward"; });
  const MemoryBuckets& first = steps.front();
  ReportMemory curve{.rank = rank,
                     .nodes = static_cast<int64_t>(nodes.size()),
                     .backward_from = backward - nodes.begin(),
                     .outside_bytes = sum(first) - program.memory().arena,
                     .planned_bytes = sum(first)};
  for (size_t k = 0; k + 1 < executor::kBuckets; ++k) {  // all but the gaps, which come last
    curve.buckets.emplace_back(name_of(static_cast<Bucket>(k)));
  }
  curve.bytes.resize(curve.buckets.size());
  const size_t stride = (steps.size() + kMostPoints - 1) / kMostPoints;
  curve.stride = static_cast<int64_t>(stride);
  for (size_t begin = 0; begin < steps.size(); begin += stride) {
    const size_t end = std::min(begin + stride, steps.size());
    size_t most = begin;
    for (size_t k = begin; k < end; ++k) most = live(steps[k]) > live(steps[most]) ? k : most;
    curve.at.push_back(static_cast<int64_t>(begin));
    for (size_t k = 0; k < curve.bytes.size(); ++k) curve.bytes[k].push_back(steps[most][k]);
  }
  return curve;
}

class Collector {
 public:
  Collector(const std::filesystem::path& folder, const Manifest& manifest,
            const ReportOptions& options)
      : folder_(folder), manifest_(manifest), options_(options) {}

  ReportData collect() {
    load();
    const executor::Arrays feeds = make_feeds();
    describe();
    measure(feeds);
    if (whole_) {
      compare(feeds);
      predict_unsharded();
    } else {
      report_.unsharded_reason = "the whole model was not given (--model)";
    }
    return std::move(report_);
  }

 private:
  void load() {
    for (const onnx_io::ManifestRank& rank : manifest_.ranks) {
      graphs_.push_back(load_rank(folder_, manifest_, rank.rank));
    }
    if (!options_.model.empty()) {
      whole_ = std::make_shared<const ir::Graph>(load_whole(options_.model, folder_, manifest_));
    }
    workers_ = options_.threads_per_rank > 0
                   ? options_.threads_per_rank
                   : executor::default_blas_threads(static_cast<int>(graphs_.size()));
    for (const auto& graph : graphs_) {
      programs_.push_back(executor::compile(graph, {.workers = workers_}));
    }
  }

  executor::Arrays make_feeds() const {
    if (!options_.feed.empty()) {
      return select_feeds(manifest_, executor::read_npz(options_.feed),
                          fmt::format("'{}'", options_.feed.string()));
    }
    return generate_feeds(whole_ ? *whole_ : *graphs_.front(), manifest_, options_.seed);
  }

  // What is known without running anything.
  void describe() {
    report_.tool_version = AUTOSP_VERSION;
    report_.folder = folder_.string();
    report_.model = manifest_.model_name;
    report_.feed = options_.feed.string();
    for (const onnx_io::ManifestAxis& axis : manifest_.mesh) {
      report_.mesh.push_back({axis.name, axis.size});
    }
    report_.recompute = manifest_.recompute.policy;
    report_.warnings = manifest_.warnings;
    report_.threads_per_rank = workers_;
    report_.steps = options_.repeat;
    const cost::Device& device = options_.device;
    const bool wide = has_wide_products(*graphs_.front());
    const double product = wide ? device.product_wide : device.product;
    report_.device = {.name = device.name,
                      .product = product,
                      .attention = device.attention * product / device.product,
                      .attention_grad = device.attention_grad * product / device.product,
                      .bandwidth = device.bandwidth};
    places_ = place_collectives(*graphs_.front(), manifest_);
    report_.layers = describe_layers(graphs_, manifest_, places_);
    report_.tokens = tokens_of(manifest_, report_.layers);
    describe_memory();
  }

  static bool has_wide_products(const ir::Graph& graph) {
    return std::ranges::any_of(graph.nodes(), [&](const ir::Node& node) {
      return node_cost(graph, node).family == cost::Family::kProduct && is_wide(graph, node);
    });
  }

  void describe_memory() {
    int64_t highest = -1;
    for (size_t k = 0; k < programs_.size(); ++k) {
      const std::vector<bool> parameters = parameter_inputs(programs_[k].graph(), manifest_);
      const MemoryBuckets peak = executor::memory_at_peak(programs_[k], parameters);
      ReportRank rank{.rank = static_cast<int64_t>(k),
                      .peak_bytes = sum(peak),
                      .planned_peak_bytes = programs_[k].memory().arena};
      rank.buckets = named(peak);
      report_.ranks.push_back(std::move(rank));
      if (sum(peak) <= highest) continue;
      highest = sum(peak);
      report_.memory = memory_curve(programs_[k], memory_by_step(programs_[k], parameters),
                                    static_cast<int64_t>(k));
    }
  }

  executor::RunOptions run_options(const std::filesystem::path& data_folder) const {
    executor::RunOptions options;
    options.data_folder = data_folder;
    options.timeout = options_.timeout;
    options.threads_per_rank = options_.threads_per_rank;
    return options;
  }

  void measure(const executor::Arrays& feeds) {
    std::vector<executor::Arrays> slices;
    for (const onnx_io::ManifestRank& rank : manifest_.ranks) {
      slices.push_back(rank_feeds(manifest_, feeds, rank.rank));
    }
    executor::RunOptions options = run_options(folder_);
    options.repeat = options_.repeat;
    options.trace = true;
    executor::RunResult result = executor::run_in_threads(graphs_, slices, options);
    read_trace(result.events);
    for (size_t k = 0; k < result.ranks.size(); ++k) {
      executor::RankResult& from = result.ranks[k];
      ReportRank& rank = report_.ranks[k];
      rank.measured_peak_bytes = from.measured_peak;
      rank.collectives = static_cast<int64_t>(from.collectives.size());
      for (const executor::CollectiveRecord& record : from.collectives) {
        rank.bytes_sent += record.bytes_sent;
      }
      rank.loss = loss_of(from.outputs);
      outputs_.push_back(std::move(from.outputs));
    }
  }

  std::optional<double> loss_of(const executor::Arrays& outputs) const {
    for (const onnx_io::ManifestOutput& output : manifest_.outputs) {
      const auto found = outputs.find(output.name);
      if (output.role == onnx_io::OutputRole::kLoss && found != outputs.end() &&
          found->second.num_elements() == 1) {
        return found->second.value_as_double(0);
      }
    }
    return std::nullopt;
  }

  // Events come rank by rank, in the order of each program's steps.
  void read_trace(const std::vector<executor::TraceEvent>& events) {
    std::vector<std::vector<NodeTime>> times(programs_.size());
    auto event = events.begin();
    for (size_t k = 0; k < programs_.size(); ++k) {
      const ir::Graph& graph = programs_[k].graph();
      for (size_t step = 0; step < graph.nodes().size(); ++step) {
        if (programs_[k].is_view(step)) continue;
        const ir::Node& node = graph.nodes()[step];
        AUTOSP_CHECK(event != events.end() && event->name == node.name, "no event of {}",
                     node.name);
        times[k].push_back({.name = node.name,
                            .phase = node.phase,
                            .begin = event->start,
                            .end = event->start + event->duration,
                            .group = ir::is_collective(node) ? node.attributes.get_ints("group")
                                                             : std::vector<int64_t>()});
        add_operator(graph, node, event->duration, event->bytes);
        ++event;
      }
    }
    finish_operators();
    const StepTimes step = read_step(times);
    for (size_t k = 0; k < step.ranks.size(); ++k) {
      ReportRank& rank = report_.ranks[k];
      rank.step_seconds = step.ranks[k].step;
      rank.compute_seconds = step.ranks[k].compute;
      rank.communication_seconds = step.ranks[k].communication;
      rank.waiting_seconds = step.ranks[k].waiting;
      rank.exposed_seconds = step.ranks[k].exposed;
    }
    report_.step_seconds = step.timeline.seconds;
    report_.timeline = step.timeline;
    report_.collectives = sum_collectives(manifest_, places_, step.collectives);
  }

  void add_operator(const ir::Graph& graph, const ir::Node& node, double seconds, int64_t sent) {
    const cost::Cost cost = node_cost(graph, node);
    ReportOperator& row = operators_[node.op];
    row.op = node.op;
    row.family = name_of(cost.family);
    ++row.count;
    row.seconds += seconds;
    row.flops += cost.flops;
    if (cost.family == cost::Family::kCollective) {
      row.bytes += static_cast<double>(sent);
      row.attainable_seconds +=
          cost::collective_seconds(options_.device, static_cast<double>(sent));
      return;
    }
    row.bytes += cost.bytes;
    row.attainable_seconds += cost::seconds(options_.device, cost, is_wide(graph, node));
  }

  void finish_operators() {
    for (const auto& [op, row] : operators_) report_.operators.push_back(row);
    std::ranges::stable_sort(report_.operators, std::greater(), &ReportOperator::seconds);
  }

  void compare(const executor::Arrays& feeds) {
    const executor::RunOptions options = run_options(options_.model.parent_path());
    std::vector<TensorComparison> tensors =
        compare_with_whole(whole_, feeds, options, manifest_, outputs_, std::nullopt).tensors;
    std::ranges::stable_sort(tensors, std::greater(), &TensorComparison::relative_error);
    std::ranges::stable_partition(tensors, [](const TensorComparison& tensor) {
      return tensor.role == onnx_io::OutputRole::kLoss;
    });
    ReportValidation validation{.equal = std::ranges::all_of(tensors, &TensorComparison::equal)};
    for (const TensorComparison& tensor : tensors) {
      validation.largest_relative_error =
          std::max(validation.largest_relative_error, tensor.relative_error());
      validation.outputs.push_back({.name = tensor.name,
                                    .role = std::string(name_of(tensor.role)),
                                    .relative_error = tensor.relative_error(),
                                    .absolute_error = tensor.largest_error,
                                    .tolerance = tensor.tolerance,
                                    .rank = tensor.rank,
                                    .verdict = verdict(tensor)});
    }
    report_.validation = std::move(validation);
  }

  // As `plan --sp 1` would. Roles that were given to `shard` are not in the manifest: a model that
  // needs them cannot be planned again.
  void predict_unsharded() {
    ModelArguments model{.model = options_.model};
    for (const onnx_io::ManifestDim& dim : manifest_.dims) {
      model.dims.push_back(fmt::format("{}={}", dim.name, dim.value));
    }
    RecomputeArguments recompute{.policy = manifest_.recompute.policy};
    if (budget_of(recompute)) recompute.policy.clear();  // it was of a rank
    try {
      const LoadedModel loaded = load_model(model, {});
      const shard::Plan plan = plan_model(loaded, {});
      const transforms::SpmdProgram kept = transforms::build_program(plan);
      const RecomputedProgram program =
          with_recompute(kept, recompute, options_.device, memory_of_this_machine(kept));
      const Prediction prediction = predict(loaded, program.program, options_.device);
      report_.unsharded = ReportUnsharded{.recompute = program.summary.policy,
                                          .peak_bytes = prediction.peak,
                                          .buckets = named(prediction.memory)};
    } catch (const Error& error) {
      report_.unsharded_reason =
          fmt::format("the whole model cannot be planned on its own: {}", error.message());
    }
  }

  const std::filesystem::path& folder_;
  const Manifest& manifest_;
  const ReportOptions& options_;
  std::vector<std::shared_ptr<const ir::Graph>> graphs_;
  std::shared_ptr<const ir::Graph> whole_;
  std::vector<executor::Program> programs_;
  std::vector<executor::Arrays> outputs_;  // by rank
  std::vector<LayerPlace> places_;
  std::map<std::string, ReportOperator> operators_;
  int workers_ = 1;
  ReportData report_;
};

}  // namespace

ReportData collect_report(const std::filesystem::path& folder, const Manifest& manifest,
                          const ReportOptions& options) {
  return Collector(folder, manifest, options).collect();
}

}  // namespace autosp::cli

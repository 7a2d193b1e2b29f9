#include "make_manifest.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "dialects.h"
#include "ir/operator_traits.h"
#include "training/arguments.h"
#include "transforms/ring_attention/ring.h"
#include "transforms/spmd/emit_ranks.h"
#include "transforms/spmd/geometry.h"
#include "transforms/spmd/tile_loop.h"

namespace autosp::cli {

namespace {

using onnx_io::Manifest;
using transforms::SpmdProgram;

std::vector<onnx_io::ManifestSlice> slices_of(const SpmdProgram& program, size_t input) {
  const transforms::Placed& placed = program.at(program.inputs[input]);
  std::vector<onnx_io::ManifestSlice> slices;
  bool whole = true;
  for (int64_t rank = 0; rank < program.plan->mesh.size(); ++rank) {
    onnx_io::ManifestSlice slice;
    for (const shard::Interval& range : transforms::input_slice(program, placed, rank)) {
      slice.begin.push_back(range.begin);
      slice.extent.push_back(range.extent());
    }
    whole = whole && slice.extent == program.graph().shape(placed.value);
    slices.push_back(std::move(slice));
  }
  if (whole) slices.clear();
  return slices;
}

std::string plan_hash(const SpmdProgram& program,
                      const std::optional<onnx_io::ManifestRandom>& random) {
  const shard::Mesh& mesh = program.plan->mesh;
  std::string text = mesh.to_string();
  if (random) text += fmt::format("\nseed {}", random->seed);
  for (const transforms::Placed& placed : program.placed) {
    text += fmt::format("\n{} {}", program.graph().name_of(placed.value),
                        shard::to_string(placed.layout, mesh));
  }
  for (const auto& record : transforms::list_collectives(program)) {
    text += fmt::format("\n{} {}", record.node, record.bytes_per_rank);
  }
  for (const transforms::Instruction& instruction : program.instructions) {
    if (transforms::phase_of(instruction) != transforms::Phase::kRecompute) continue;
    for (transforms::PlacedId id : transforms::results_of(instruction)) {
      text += fmt::format("\n{}", program.graph().name_of(program.at(id).value));
    }
  }
  for (const transforms::TileLoop& loop : program.tile_loops) {
    text += fmt::format("\n{} from {}: {} tiles", loop.count, loop.first, loop.stretch->tiles);
  }
  if (program.exchange != nullptr) {
    const transforms::TrainingPlan& training = program.exchange->plan;
    const transforms::OptimizerSettings& o = training.optimizer;
    text += fmt::format("\n{} {} {} {} {} {} {} {} {}", o.name, o.momentum, o.beta1, o.beta2,
                        o.epsilon, o.weight_decay, o.clip_norm, training.zero, training.accumulate);
  }
  return onnx_io::fingerprint(text);
}

void add_outputs(const SpmdProgram& program, Manifest& manifest) {
  const ir::Graph& graph = program.graph();
  const shard::Roles& roles = program.plan->roles;
  for (size_t k = 0; k < graph.outputs().size(); ++k) {
    onnx_io::ManifestOutput output{.name = graph.outputs()[k].name,
                                   .type = graph.type(graph.outputs()[k].value),
                                   .role = onnx_io::OutputRole::kOther,
                                   .parameter = ""};
    if (roles.loss == k) output.role = onnx_io::OutputRole::kLoss;
    const auto gradient = std::ranges::find(roles.gradients, k, &shard::Gradient::output);
    if (gradient != roles.gradients.end()) {
      output.role = onnx_io::OutputRole::kGradient;
      output.parameter = gradient->parameter;
    }
    manifest.outputs.push_back(std::move(output));
  }
}

onnx_io::Phase in_manifest(transforms::Phase phase) {
  switch (phase) {
    case transforms::Phase::kForward:
      return onnx_io::Phase::kForward;
    case transforms::Phase::kBackward:
      return onnx_io::Phase::kBackward;
    case transforms::Phase::kRecompute:
      return onnx_io::Phase::kRecompute;
  }
  internal_error(__FILE__, __LINE__, fmt::format("phase {}", static_cast<int>(phase)));
}

onnx_io::Purpose in_manifest(transforms::Purpose purpose) {
  switch (purpose) {
    case transforms::Purpose::kReshard:
      return onnx_io::Purpose::kReshard;
    case transforms::Purpose::kGradient:
      return onnx_io::Purpose::kGradient;
    case transforms::Purpose::kLoss:
      return onnx_io::Purpose::kLoss;
    case transforms::Purpose::kParameter:
      return onnx_io::Purpose::kParameter;
  }
  internal_error(__FILE__, __LINE__, fmt::format("purpose {}", static_cast<int>(purpose)));
}

void add_collectives(const SpmdProgram& program, Manifest& manifest) {
  for (const auto& record : transforms::list_collectives(program)) {
    manifest.collectives.push_back({.node = record.node,
                                    .kind = std::string(transforms::name_of(record.kind)),
                                    .value = record.value,
                                    .mesh_axes = record.mesh_axes,
                                    .group_size = record.group_size,
                                    .bytes_per_rank = record.bytes_per_rank,
                                    .phase = in_manifest(record.phase),
                                    .purpose = in_manifest(record.purpose)});
  }
}

// Absent where the model draws nothing at random.
std::optional<onnx_io::ManifestRandom> draws_of(const LoadedModel& model) {
  const auto draws = [](const ir::Node& node) {
    return ir::is_draw(node) || ir::drops_weights(node);
  };
  if (std::ranges::none_of(model.graph.nodes(), draws)) return std::nullopt;
  const auto step = transforms::find_step_input(model.graph);
  return onnx_io::ManifestRandom{.seed = model.seed,
                                 .step_input = step ? model.graph.name_of(*step) : ""};
}

}  // namespace

Manifest make_manifest(const LoadedModel& model, const SpmdProgram& program) {
  const shard::Plan& plan = *program.plan;
  const ir::Graph& graph = program.graph();
  Manifest manifest;
  manifest.tool_version = AUTOSP_VERSION;
  onnx_io::describe_model(model.path, manifest);
  manifest.opset = graph.opset;
  for (const auto& [name, value] : model.bindings.dims) manifest.dims.push_back({name, value});
  for (const shard::MeshAxis& axis : plan.mesh.axes()) {
    manifest.mesh.push_back({axis.name, axis.size});
  }
  for (int64_t rank = 0; rank < plan.mesh.size(); ++rank) {
    manifest.ranks.push_back(
        {rank, graph_file(Dialect::kAutosp, rank), plan.mesh.coordinates(rank)});
  }
  for (size_t k = 0; k < graph.inputs().size(); ++k) {
    const ValueId input = graph.inputs()[k];
    manifest.inputs.push_back({.name = graph.name_of(input),
                               .type = graph.type(input),
                               .role = plan.roles.is_parameter[input.index()]
                                           ? onnx_io::InputRole::kParameter
                                           : onnx_io::InputRole::kData,
                               .slices = slices_of(program, k)});
  }
  add_outputs(program, manifest);
  add_collectives(program, manifest);
  for (const shard::GatheredOperator& entry : plan.gathered) {
    manifest.warnings.push_back(fmt::format(
        "node '{}' is gathered over {} ({} per rank): {}", graph.describe(graph.node(entry.node)),
        entry.axis, format_bytes(static_cast<double>(entry.bytes)), entry.reason));
  }
  if (plan.ring_asked && !plan.has_ring() && plan.ring_refusals.empty()) {
    const bool has_axis = plan.axis_named("r") != plan.mesh.num_axes();
    manifest.warnings.push_back(
        fmt::format("there is no ring: {}", has_axis ? "no attention is one operator ('inspect')"
                                                     : "the mesh has no axis r (--sp-mesh r=N)"));
  }
  for (const shard::RingRefusal& entry : plan.ring_refusals) {
    manifest.warnings.push_back(
        fmt::format("node '{}' has no ring, its keys and values are gathered: {}",
                    graph.describe(graph.node(entry.node)), entry.reason));
  }
  if (plan.zigzag_asked && plan.has_ring()) {
    const transforms::ZigzagUse use = transforms::zigzag_use(program);
    if (use.zigzag == 0) {
      manifest.warnings.push_back(
          fmt::format("no attention is in zigzag order: {}", fmt::join(use.why_in_blocks, "; ")));
    }
  }
  manifest.random = draws_of(model);
  describe_training(program, manifest);
  manifest.plan_hash = plan_hash(program, manifest.random);
  return manifest;
}

}  // namespace autosp::cli

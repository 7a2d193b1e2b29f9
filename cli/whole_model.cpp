#include "whole_model.h"

#include <algorithm>
#include <cstdio>

#include "base/error.h"
#include "ir/rewriter.h"
#include "model_arguments.h"
#include "onnx/model.h"
#include "transforms/pipeline.h"
#include "transforms/widen_floats.h"

namespace autosp::cli {

ir::Graph load_whole(const std::filesystem::path& model, const std::filesystem::path& folder,
                     const onnx_io::Manifest& manifest) {
  onnx_io::Manifest given;
  onnx_io::describe_model(model, given);
  if (given.model_fingerprint != manifest.model_fingerprint) {
    throw Error("'{}' is not the model that '{}' was made from ('{}')", model.string(),
                folder.string(), manifest.model_name)
        .note("the manifest keeps a fingerprint of the model's bytes, which differs")
        .help("give the original model, or shard this one again");
  }
  onnx_io::ImportOptions options;
  for (const onnx_io::ManifestDim& dim : manifest.dims) options.dims[dim.name] = dim.value;
  if (manifest.training) {
    options.parameters = {manifest.training->parameters.begin(),
                          manifest.training->parameters.end()};
  }
  ir::Graph graph = onnx_io::import_model(model, options);
  // ONNX Runtime's own operators have no kernels here: these graphs are compared from where they
  // consist of standard operators.
  const bool guests = std::ranges::any_of(graph.nodes(), [](const ir::Node& node) {
    return node.domain == ir::kMicrosoftDomain || node.op == "SimplifiedLayerNormalization";
  });
  std::vector<std::string> passes;
  if (guests) passes.emplace_back("lower_microsoft_operators");
  // Random numbers are the ranks' where both draw them by place.
  if (manifest.random) passes.emplace_back("decompose_random");
  if (!passes.empty()) {
    transforms::PipelineOptions pipeline{.passes = std::move(passes)};
    if (manifest.random) {
      pipeline.context.draws = {.seed = static_cast<uint64_t>(manifest.random->seed),
                                .step_input = kStepInput};
    }
    graph = transforms::run_passes(graph, pipeline);
  }
  // Initializers that the ranks take as inputs, because they are trained.
  std::set<std::string> trained;
  for (const onnx_io::ManifestInput& input : manifest.inputs) {
    const auto value = graph.find(input.name);
    if (value && graph.value(*value).kind != ir::ValueKind::kInput) trained.insert(input.name);
  }
  return trained.empty() ? std::move(graph) : ir::initializers_as_inputs(graph, trained);
}

namespace {

// A conversion to fewer bits may be what a gradient is about, as where weights are quantized: in
// float64 nothing would be left of it.
bool rounds_on_purpose(const ir::Graph& graph) {
  return std::ranges::any_of(graph.nodes(), [&](const ir::Node& node) {
    if (!node.is("Cast")) return false;
    const ir::DataType from = graph.type(node.input(0)).dtype;
    const ir::DataType to = graph.type(node.output(0)).dtype;
    return is_floating(from) && is_floating(to) && element_size(to) < element_size(from);
  });
}

}  // namespace

Comparison compare_with_whole(const std::shared_ptr<const ir::Graph>& whole,
                              const executor::Arrays& feeds, const executor::RunOptions& options,
                              const onnx_io::Manifest& manifest,
                              const std::vector<executor::Arrays>& ranks,
                              std::optional<double> tolerance) {
  const auto outputs_of = [&](std::shared_ptr<const ir::Graph> graph) {
    return executor::run_in_threads({std::move(graph)}, {feeds}, options).ranks.front().outputs;
  };
  Comparison result{.whole = outputs_of(whole), .tensors = {}};
  result.tensors = compare_outputs(manifest, result.whole, ranks, precisions(*whole), tolerance);
  if (!may_be_rounding(result.tensors)) return result;
  try {
    const auto wide = std::make_shared<const ir::Graph>(transforms::widen_floats(*whole));
    const executor::Arrays exact = outputs_of(wide);
    mark_as_exact(result.tensors, exact, result.whole, ranks);
    if (!rounds_on_purpose(*whole)) mark_rounding(result.tensors, exact, result.whole, ranks);
  } catch (const Error& error) {
    fmt::print(stderr, "note: the model could not be run in float64: {}\n", error.message());
  }
  return result;
}

}  // namespace autosp::cli

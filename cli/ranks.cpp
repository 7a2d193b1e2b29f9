#include "ranks.h"

#include <cstdio>
#include <set>

#include "base/context.h"
#include "base/error.h"
#include "executor/openblas.h"
#include "feeds.h"
#include "onnx/model.h"
#include "signature.h"
#include "training/shards.h"

namespace autosp::cli {

namespace {

void check_signature(const ir::Graph& graph, const std::filesystem::path& path,
                     const onnx_io::Manifest& manifest, int64_t rank) {
  const Signature found = signature_of(graph).value_or(Signature());
  const std::string expected = std::to_string(rank);
  if (found.rank == expected && found.plan == plan_signature(manifest)) return;
  Error error("'{}' is not the graph of rank {} that the manifest describes", path.string(), rank);
  error.note(found.rank.empty()       ? "it does not say which rank it is of"
             : found.rank != expected ? fmt::format("it says that it is of rank {}", found.rank)
                                      : "it was made from another model, or by another plan");
  throw error.help("shard the model again: the folder holds files of different runs");
}

}  // namespace

std::shared_ptr<const ir::Graph> load_rank(const std::filesystem::path& folder,
                                           const onnx_io::Manifest& manifest, int64_t rank) {
  const auto path = folder / manifest.ranks[static_cast<size_t>(rank)].file;
  if (!std::filesystem::exists(path)) {
    throw Error("'{}' lacks the graph of rank {}, '{}'", folder.string(), rank,
                path.filename().string())
        .note("its manifest lists it; a folder sharded in another --dialect alone holds none")
        .help("shard the model again with --dialect autosp");
  }
  const auto shape_of = [rank](const onnx_io::ManifestInput& input) {
    return input.slices.empty() ? input.type.shape : input.slices[static_cast<size_t>(rank)].extent;
  };
  onnx_io::ImportOptions options;
  if (manifest.open_length) {
    for (const onnx_io::ManifestInput& input : manifest.inputs) {
      options.input_shapes[input.name] = shape_of(input);
    }
  }
  auto graph = std::make_shared<ir::Graph>(
      with_context("the manifest says which shapes the inputs of a rank have",
                   "shard the model again: the folder holds files of different runs",
                   [&] { return onnx_io::import_model(path, options); }));
  check_signature(*graph, path, manifest, rank);
  for (const onnx_io::ManifestInput& input : manifest.inputs) {
    if (is_shared_out(manifest, input.name)) continue;
    const auto value = graph->find(input.name);
    const ir::Shape shape = shape_of(input);
    if (!value || graph->shape(*value) != shape) {
      throw Error("'{}' does not take '{}' of shape {}, as the manifest says", path.string(),
                  input.name, ir::to_string(shape))
          .note(value ? fmt::format("its input is {}", ir::to_string(graph->shape(*value)))
                      : "it has no input of that name")
          .help("shard the model again: the folder holds files of different runs");
    }
  }
  return graph;
}

executor::RunResult run_ranks(const std::filesystem::path& folder,
                              const onnx_io::Manifest& manifest,
                              const std::vector<executor::Arrays>& feeds,
                              const executor::RunOptions& options) {
  std::vector<std::shared_ptr<const ir::Graph>> graphs;
  for (const onnx_io::ManifestRank& rank : manifest.ranks) {
    graphs.push_back(load_rank(folder, manifest, rank.rank));
  }
  executor::RunResult result = executor::run_in_threads(graphs, feeds, options);
  std::vector<executor::Arrays*> outputs;
  for (executor::RankResult& rank : result.ranks) outputs.push_back(&rank.outputs);
  name_gradients(manifest, outputs);
  return result;
}

executor::RunResult run_ranks(const std::filesystem::path& folder,
                              const onnx_io::Manifest& manifest, const executor::Arrays& feeds,
                              const executor::RunOptions& options) {
  std::vector<executor::Arrays> slices;
  for (const onnx_io::ManifestRank& rank : manifest.ranks) {
    slices.push_back(rank_feeds(manifest, feeds, rank.rank));
  }
  return run_ranks(folder, manifest, slices, options);
}

std::string count_of_ranks(size_t ranks) {
  return fmt::format("{} rank{}", ranks, ranks == 1 ? "" : "s");
}

void print_notices(const std::vector<executor::RankResult>& ranks) {
  std::set<std::string> notices;
  for (const auto& rank : ranks) notices.insert(rank.notices.begin(), rank.notices.end());
  print_notices(notices);
}

void print_notices(const std::set<std::string>& notices) {
  for (const std::string& notice : notices) fmt::print(stderr, "note: {}\n", notice);
  if (const auto notice = executor::openblas_notice()) fmt::print(stderr, "note: {}\n", *notice);
}

}  // namespace autosp::cli

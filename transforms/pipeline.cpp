#include "transforms/pipeline.h"

#include <algorithm>
#include <chrono>

#include "base/context.h"
#include "base/error.h"
#include "transforms/canonicalize/canonicalize.h"

namespace autosp::transforms {

namespace {

using ir::Graph;

constexpr Pass kCanonicalPasses[] = {
    {"lower_microsoft_operators", "com.microsoft training operators become standard ones",
     lower_microsoft_operators},
    {"fold_constants", "evaluate what is known before any input is", fold_constants},
    {"simplify_views", "drop what changes nothing, merge chains of views", simplify_views},
    {"decompose_losses", "losses become sums of numerators over counts", decompose_losses},
    {"decompose_means", "means and norms become sums and elementwise operators", decompose_means},
    {"decompose_convolutions", "convolutions along one axis become sums over their taps",
     decompose_convolutions},
    {.name = "decompose_random",
     .summary = "random operators and dropout become draws by place, and selections",
     .run_in = [](const Graph& graph,
                  const PassContext& context) { return decompose_random(graph, context.draws); }},
    {"eliminate_common_subexpressions", "compute equal things once",
     eliminate_common_subexpressions},
    // Equal operands are the same value now.
    {"drop_softmax_shifts", "a softmax subtracts its maximum by itself", drop_softmax_shifts},
    {"distribute_score_factors",
     "scores are scaled before anything is added to them or taken from them",
     distribute_score_factors},
    // Index arithmetic is simple now.
    {"simplify_gathers", "gathers of ranges and grids become slices and views", simplify_gathers},
    {"raise_scatter_to_pad", "scatters to ranges become pads", raise_scatter_to_pad},
    {"fold_constants", "", fold_constants},
    {"simplify_views", "", simplify_views},
    {"raise_sums_of_products", "sums of products become matrix products", raise_sums_of_products},
    // After the last pass that makes slices and pads.
    {"split_to_slices", "Split and Concat of unequal parts become slices and pads",
     split_to_slices},
    // Pads and slices have plain bounds now.
    {"drop_positions_early", "what the loss does not look at is dropped before the head's product",
     drop_positions_early},
    {"simplify_views", "", simplify_views},
    {"select_to_masked_sum", "one position of many becomes a masked sum", select_to_masked_sum},
    {"eliminate_common_subexpressions", "", eliminate_common_subexpressions},
    {"privatize_constant_subgraphs", "every reader of a computed constant gets its own",
     privatize_constant_subgraphs},
};

Graph fuse_attention_in(const Graph& graph, const PassContext& context) {
  FusedAttention fused = fuse_attention(graph, shard::detect_roles(graph, context.roles));
  if (context.attention != nullptr) {
    context.attention->insert(context.attention->end(), fused.regions.begin(), fused.regions.end());
  }
  return std::move(fused.graph);
}

constexpr Pass kAttentionPasses[] = {
    {.name = "fuse_attention",
     .summary = "attention becomes one operator, forward and backward",
     .run_in = fuse_attention_in},
    {"simplify_views", "", simplify_views},
    {"eliminate_common_subexpressions", "", eliminate_common_subexpressions},
    {"privatize_constant_subgraphs", "", privatize_constant_subgraphs},
};

std::vector<const Pass*> all_passes() {
  std::vector<const Pass*> passes;
  for (const Pass& pass : kCanonicalPasses) passes.push_back(&pass);
  for (const Pass& pass : kAttentionPasses) passes.push_back(&pass);
  return passes;
}

}  // namespace

std::span<const Pass> canonical_passes() { return kCanonicalPasses; }
std::span<const Pass> attention_passes() { return kAttentionPasses; }

std::vector<std::string> pass_names() {
  std::vector<std::string> names;
  for (const Pass* pass : all_passes()) {
    if (std::ranges::find(names, pass->name) == names.end()) names.emplace_back(pass->name);
  }
  return names;
}

const Pass& find_pass(std::string_view name) {
  for (const Pass* pass : all_passes()) {
    if (pass->name == name) return *pass;
  }
  const std::vector<std::string> names = pass_names();
  Error error("there is no pass named '{}'", name);
  error.note(fmt::format("the passes are {}", fmt::join(names, ", ")));
  const std::string nearest = nearest_name(name, names);
  error.help(nearest.empty() ? "give names from that list, separated by commas"
                             : fmt::format("did you mean '{}'?", nearest));
  throw error;
}

Graph run_passes(const Graph& graph, const PipelineOptions& options) {
  std::vector<const Pass*> passes;
  for (const std::string& name : options.passes) passes.push_back(&find_pass(name));
  if (passes.empty()) {
    for (const Pass& pass : kCanonicalPasses) passes.push_back(&pass);
  }
  if (options.passes.empty() && options.fuse_attention) {
    for (const Pass& pass : kAttentionPasses) passes.push_back(&pass);
  }
  Graph result;
  const Graph* from = &graph;
  for (const Pass* pass : passes) {
    const auto begin = std::chrono::steady_clock::now();
    const size_t nodes_before = from->nodes().size();
    result = with_context(fmt::format("in the pass '{}'", pass->name),
                          "check the model with onnx.checker.check_model(model, full_check=True), "
                          "and export it again",
                          [&] { return pass->apply(*from, options.context); });
    from = &result;
    verify(result);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    if (options.timings != nullptr) {
      options.timings->push_back({.name = pass->name,
                                  .seconds = taken.count(),
                                  .nodes_before = nodes_before,
                                  .nodes_after = result.nodes().size()});
    }
    if (options.after) options.after(*pass, result);
  }
  return result;
}

}  // namespace autosp::transforms

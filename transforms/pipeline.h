// The passes between a model and a plan, and the one runner that runs them.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ir/graph.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/fuse_attention/fuse_attention.h"

namespace autosp::transforms {

// What some passes need besides the graph, and what they find out.
struct PassContext {
  shard::RoleOptions roles;
  DrawOptions draws;
  std::vector<AttentionRegion>* attention = nullptr;  // one entry appended per region
};

struct Pass {
  std::string_view name;
  std::string_view summary;  // one line
  ir::Graph (*run)(const ir::Graph&) = nullptr;
  ir::Graph (*run_in)(const ir::Graph&, const PassContext&) = nullptr;  // instead of `run`

  ir::Graph apply(const ir::Graph& graph, const PassContext& context) const {
    return run_in != nullptr ? run_in(graph, context) : run(graph);
  }
};

// In the order in which they run. A pass that pays off again after another is listed again.
std::span<const Pass> canonical_passes();

// Run on a canonical graph: its attention becomes one operator per layer and direction. The result
// is canonical again.
std::span<const Pass> attention_passes();

// The names of all passes, each once, in order of first appearance.
std::vector<std::string> pass_names();

struct PassTiming {
  std::string_view name;
  double seconds = 0;
  size_t nodes_before = 0;
  size_t nodes_after = 0;
};

struct PipelineOptions {
  // Names in order of execution; empty: canonical_passes(), then attention_passes() if wanted.
  std::vector<std::string> passes;
  bool fuse_attention = false;
  PassContext context;
  // Called with the graph after every pass.
  std::function<void(const Pass&, const ir::Graph&)> after;
  std::vector<PassTiming>* timings = nullptr;  // one entry appended per pass run
};

// Runs the passes; the graph is verified after each. Throws Error when a name is not a pass.
ir::Graph run_passes(const ir::Graph& graph, const PipelineOptions& options = {});

// Throws Error, with the nearest name as a suggestion, unless `name` is a pass.
const Pass& find_pass(std::string_view name);

}  // namespace autosp::transforms

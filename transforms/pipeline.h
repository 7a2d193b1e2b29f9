// The passes that bring a training graph to canonical form, and the one runner that runs them.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ir/graph.h"

namespace autosp::transforms {

struct Pass {
  std::string_view name;
  std::string_view summary;  // one line
  ir::Graph (*run)(const ir::Graph&);
};

// In the order in which they run. A pass that pays off again after another is listed again.
std::span<const Pass> canonical_passes();

// The names of all passes, each once, in order of first appearance.
std::vector<std::string> pass_names();

struct PassTiming {
  std::string_view name;
  double seconds = 0;
  size_t nodes_before = 0;
  size_t nodes_after = 0;
};

struct PipelineOptions {
  std::vector<std::string> passes;  // names in order of execution; empty: canonical_passes()
  // Called with the graph after every pass.
  std::function<void(const Pass&, const ir::Graph&)> after;
  std::vector<PassTiming>* timings = nullptr;  // one entry appended per pass run
};

// Runs the passes; the graph is verified after each. Throws Error when a name is not a pass.
ir::Graph run_passes(const ir::Graph& graph, const PipelineOptions& options = {});

// Throws Error, with the nearest name as a suggestion, unless `name` is a pass.
const Pass& find_pass(std::string_view name);

}  // namespace autosp::transforms

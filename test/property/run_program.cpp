#include "run_program.h"

#include "transforms/spmd/emit_ranks.h"
#include "transforms/spmd/geometry.h"

namespace autosp::transforms {

namespace {

// What a rank is fed: its slice of every input.
executor::Arrays rank_feeds(const SpmdProgram& program, const test::Tensors& feeds, int64_t rank) {
  executor::Arrays result;
  const ir::Graph& graph = program.graph();
  for (size_t k = 0; k < graph.inputs().size(); ++k) {
    std::vector<int64_t> begin;
    ir::Shape extent;
    for (const auto& range : input_slice(program, program.at(program.inputs[k]), rank)) {
      begin.push_back(range.begin);
      extent.push_back(range.extent());
    }
    const std::string& name = graph.name_of(graph.inputs()[k]);
    result[name] = feeds.at(name).block(begin, extent);
  }
  return result;
}

}  // namespace

executor::RunResult run_program(const SpmdProgram& program, const test::Tensors& feeds,
                                bool overlap) {
  std::vector<std::shared_ptr<const ir::Graph>> graphs;
  std::vector<executor::Arrays> fed;
  for (int64_t rank = 0; rank < program.plan->mesh.size(); ++rank) {
    graphs.push_back(std::make_shared<ir::Graph>(emit_rank(program, rank)));
    fed.push_back(rank_feeds(program, feeds, rank));
  }
  return executor::run_in_threads(graphs, fed,
                                  {.threads_per_rank = 1, .compile = {.overlap = overlap}});
}

}  // namespace autosp::transforms

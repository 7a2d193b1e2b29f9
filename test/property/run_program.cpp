#include "run_program.h"

#include "support/rank_feeds.h"
#include "transforms/spmd/emit_ranks.h"

namespace autosp::transforms {

executor::RunResult run_program(const SpmdProgram& program, const test::Tensors& feeds,
                                bool overlap, std::shared_ptr<executor::Backend> backend) {
  std::vector<std::shared_ptr<const ir::Graph>> graphs;
  std::vector<executor::Arrays> fed;
  for (int64_t rank = 0; rank < program.plan->mesh.size(); ++rank) {
    graphs.push_back(std::make_shared<ir::Graph>(emit_rank(program, rank)));
    fed.push_back(rank_feeds(program, feeds, rank));
  }
  return executor::run_in_threads(
      graphs, fed,
      {.threads_per_rank = 1, .backend = std::move(backend), .compile = {.overlap = overlap}});
}

}  // namespace autosp::transforms

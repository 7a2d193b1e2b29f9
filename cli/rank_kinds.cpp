#include "rank_kinds.h"

#include <set>

#include "sharded_folder.h"
#include "transforms/training/exchange.h"

namespace autosp::cli {

namespace {

using transforms::SpmdProgram;

std::vector<int64_t> kind_of(const SpmdProgram& program, int64_t rank) {
  const shard::Mesh& mesh = program.plan->mesh;
  std::vector<int64_t> kind;
  const std::vector<int64_t> coordinates = mesh.coordinates(rank);
  for (size_t k = 0; k < coordinates.size(); ++k) {
    const bool last = coordinates[k] + 1 == mesh.axes()[k].size;
    // On a ring ranks attend to different blocks of keys, each in its own steps.
    const bool alone = mesh.axes()[k].name == "r" && program.plan->has_ring();
    kind.push_back(alone ? coordinates[k] : coordinates[k] == 0 ? 0 : last ? 2 : 1);
  }
  for (const transforms::Placed& placed : program.placed) {
    const ir::Shape shape = transforms::local_shape(placed, mesh, rank);
    kind.insert(kind.end(), shape.begin(), shape.end());
  }
  if (program.exchange != nullptr) {
    for (const transforms::Bucket& bucket : program.exchange->plan.buckets) {
      kind.push_back(bucket.shard_elements(rank));
    }
  }
  return kind;
}

}  // namespace

std::vector<int64_t> rank_kinds(const SpmdProgram& program) {
  std::set<std::vector<int64_t>> known;
  std::vector<int64_t> ranks;
  for (int64_t rank = 0; rank < program.plan->mesh.size(); ++rank) {
    if (known.insert(kind_of(program, rank)).second) ranks.push_back(rank);
  }
  return ranks;
}

executor::Program compile_rank(const SpmdProgram& program, int64_t rank) {
  return executor::compile(std::make_shared<const ir::Graph>(rank_graph(program, rank)));
}

}  // namespace autosp::cli

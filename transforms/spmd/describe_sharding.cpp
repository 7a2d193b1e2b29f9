#include "transforms/spmd/describe_sharding.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace autosp::transforms {

namespace {

using shard::Interval;

// The ranges of one factor that ranks hold, in order.
class Cuts {
 public:
  void add(const Interval& range) {
    if (std::ranges::find(ranges_, range) == ranges_.end()) ranges_.push_back(range);
  }
  void sort() {
    std::ranges::sort(ranges_, {}, [](const Interval& r) { return std::pair(r.begin, r.end); });
  }
  size_t size() const { return ranges_.size(); }
  size_t position(const Interval& range) const {
    return static_cast<size_t>(std::ranges::find(ranges_, range) - ranges_.begin());
  }

 private:
  std::vector<Interval> ranges_;
};

std::optional<ir::TensorSharding> describe(const SpmdProgram& program, PlacedId id) {
  const Placed& placed = program.at(id);
  const shard::Mesh& mesh = program.plan->mesh;
  const auto is_no_division = [](const shard::AxisLayout& axis) {
    return axis.is_partial() || axis.halo != shard::Halo{};
  };
  if (std::ranges::any_of(placed.layout, is_no_division)) return std::nullopt;
  std::vector<std::vector<std::vector<Interval>>> held;  // by rank, dimension, factor
  for (int64_t rank = 0; rank < mesh.size(); ++rank) {
    held.push_back(local_ranges(placed, mesh, rank));
  }
  ir::TensorSharding result;
  size_t shards = 1;
  std::vector<size_t> shard_of(held.size(), 0);  // by rank
  for (size_t d = 0; d < placed.atoms.size(); ++d) {
    ir::ShardedDim dim{.axis = static_cast<int64_t>(d), .factors = {}};
    bool is_cut = false;
    for (size_t a = 0; a < placed.atoms[d].size(); ++a) {
      Cuts cuts;
      for (const auto& ranges : held) cuts.add(ranges[d][a]);
      cuts.sort();
      dim.factors.push_back({placed.atoms[d][a], static_cast<int64_t>(cuts.size())});
      is_cut = is_cut || cuts.size() > 1;
      shards *= cuts.size();
      for (size_t rank = 0; rank < held.size(); ++rank) {
        shard_of[rank] = shard_of[rank] * cuts.size() + cuts.position(held[rank][d][a]);
      }
    }
    if (is_cut) result.dims.push_back(std::move(dim));
  }
  result.shards.resize(shards);
  for (size_t rank = 0; rank < held.size(); ++rank) {
    result.shards[shard_of[rank]].push_back(static_cast<int64_t>(rank));
  }
  // Every combination of cuts is somebody's, unless the ranks hold no grid.
  if (std::ranges::any_of(result.shards, &std::vector<int64_t>::empty)) return std::nullopt;
  return result;
}

std::vector<std::optional<ir::TensorSharding>> describe(const SpmdProgram& program,
                                                        const std::vector<PlacedId>& ids) {
  std::vector<std::optional<ir::TensorSharding>> result;
  for (PlacedId id : ids) result.push_back(id ? describe(program, id) : std::nullopt);
  return result;
}

}  // namespace

ir::GraphSharding describe_sharding(const SpmdProgram& program, AnnotatedGraph kind) {
  const shard::Mesh& mesh = program.plan->mesh;
  ir::GraphSharding result{.configuration = mesh.to_string(), .devices = {}, .nodes = {}};
  for (int64_t rank = 0; rank < mesh.size(); ++rank) {
    result.devices.push_back(fmt::format("rank {}", rank));
  }
  const ir::Graph& graph = program.graph();
  for (const Instruction& instruction : program.instructions) {
    const auto* compute = std::get_if<Compute>(&instruction);
    if (compute == nullptr) continue;
    const ir::Node& node = graph.node(compute->node);
    const bool names_itself = kind == AnnotatedGraph::kRank && node.origin.empty();
    result.nodes[node.name + name_suffix(compute->phase)] = {
        .origin = names_itself ? node.name : node.origin,
        .inputs = describe(program, compute->operands),
        .outputs = describe(program, compute->results)};
  }
  return result;
}

}  // namespace autosp::transforms

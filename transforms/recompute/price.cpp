#include "transforms/recompute/price.h"

#include <algorithm>

#include "transforms/ring_attention/ring.h"
#include "transforms/spmd/geometry.h"

namespace autosp::transforms {

namespace {

constexpr int64_t kRank = 0;

class Prices {
 public:
  Prices(const SpmdProgram& program, const cost::Device& device)
      : program_(program), device_(device) {}

  double of(const Compute& compute) const {
    const ir::Node& node = program_.graph().node(compute.node);
    std::vector<ir::Type> operands;
    // What is not data (shapes, axes) is small.
    for (PlacedId id : compute.operands) operands.push_back(id ? local_type(id) : ir::Type{});
    std::vector<ir::Type> results;
    for (PlacedId id : compute.results) results.push_back(id ? local_type(id) : ir::Type{});
    const bool wide = !operands.empty() && ir::element_size(operands[0].dtype) >= 4;
    const double visible = cost::visible_fraction(program_.graph(), node);
    if (program_.plan->is_on_ring(compute.node))
      return of_ring(compute, operands, results, visible);
    return cost::seconds(device_, cost::operator_cost(node, operands, results, visible), wide);
  }

  double of(const Move& move) const {
    if (is_collective(move.kind)) {
      const int64_t bytes = bytes_sent(program_, move, kRank);
      return cost::collective_seconds(device_, static_cast<double>(bytes));
    }
    return 2 * static_cast<double>(local_type(move.to).num_bytes()) / device_.bandwidth;
  }

 private:
  // All blocks of keys, and what passes between ranks: of the busiest rank, which the others wait
  // for.
  double of_ring(const Compute& compute, std::vector<ir::Type> operands,
                 const std::vector<ir::Type>& results, double visible) const {
    const ir::Node& node = program_.graph().node(compute.node);
    const Ring ring(program_, compute);
    const auto at = *shard::attention_operands(node);
    for (size_t k : {at.key, at.value}) operands[k].shape[2] = ring.schedule().keys().extent();
    const bool wide = ir::element_size(operands[0].dtype) >= 4;
    double seconds =
        cost::seconds(device_, cost::operator_cost(node, operands, results, visible), wide) *
        ring.schedule().busiest_over_mean();
    for (const RingTransfer& transfer : ring.transfers()) {
      int64_t bytes = 0;
      for (const int64_t rank : ring.ranks_with(kRank)) {
        bytes = std::max(bytes, ring.bytes_sent(transfer, rank));
      }
      seconds += cost::collective_seconds(device_, static_cast<double>(bytes));
    }
    return seconds;
  }

  ir::Type local_type(PlacedId id) const {
    const Placed& placed = program_.at(id);
    return {program_.graph().type(placed.value).dtype,
            local_shape(placed, program_.plan->mesh, kRank)};
  }

  const SpmdProgram& program_;
  const cost::Device& device_;
};

}  // namespace

std::vector<double> instruction_seconds(const SpmdProgram& program, const cost::Device& device) {
  const Prices prices(program, device);
  std::vector<double> seconds;
  for (const Instruction& instruction : program.instructions) {
    seconds.push_back(std::visit([&](const auto& kind) { return prices.of(kind); }, instruction));
  }
  return seconds;
}

}  // namespace autosp::transforms

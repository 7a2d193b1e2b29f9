// What an operator costs: floating-point operations and bytes moved, from shapes alone.
//
// Counted is what must be done, not what some kernel does: a product of [m, k] and [k, n] is 2 m n
// k operations, attention is its products over the visible pairs of queries and keys. Bytes are
// those of operands and results, each once.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "ir/graph.h"

namespace autosp::cost {

// Families of operators that reach different rates on a device.
enum class Family : uint8_t {
  kView,       // nothing is done
  kProduct,    // matrix products and convolutions
  kAttention,  // fused attention, forward
  kAttentionGrad,
  kCollective,  // bytes are those this rank sends
  kMovement,    // everything else is bound by memory
};
std::string_view name_of(Family family);

struct Cost {
  Family family = Family::kMovement;
  double flops = 0;
  double bytes = 0;
};

// `operands` and `results` are the types on one rank; absent ones are undefined. `visible` is the
// fraction of (query, key) pairs that attention sees; see visible_fraction. Collectives cost
// nothing here: what they send depends on the group.
Cost operator_cost(const ir::Node& node, std::span<const ir::Type> operands,
                   std::span<const ir::Type> results, double visible = 1.0);

// Of a fused attention (or its gradient): exact where its ranges of keys are constants, as if
// unbounded on the side where only the other is, a half where all of them are computed, 1 where
// there are none. 1 for other nodes.
double visible_fraction(const ir::Graph& graph, const ir::Node& node);

}  // namespace autosp::cost

// Planning one mesh axis: a minimum cut decides, operator by operator, whether it runs split by the
// sequence (home) or by the alternative, so that the fewest bytes move between operators.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "shard/attention.h"
#include "shard/cut_points.h"
#include "shard/factors.h"
#include "shard/layout.h"
#include "shard/query_positions.h"

namespace autosp::shard {

enum class Label : uint8_t { kHome = 0, kAlternative = 1 };

// The layouts an operator needs and makes, over one axis. Operands that are not data are
// replicated.
struct Strategy {
  std::vector<AxisLayout> operands;
  std::vector<AxisLayout> results;
};

struct AxisProblem {
  int64_t ranks = 1;
  ClassSet home;
  CutPoints home_cuts;       // of every home atom
  bool nested = false;       // home cut points count over all sequence axes (see AxisLayout)
  FactorChoice alternative;  // the factor to split instead, by node; may be empty
  // The alternative is a home factor too (the query positions) and has its cut points.
  bool alternative_is_home = false;
  // Price of running a view on the whole of a value instead of a shard, as a fraction of its bytes.
  // Without it, an axis that gathers K and V would gather them only after they are repeated.
  // Negative: not allowed.
  double view_replication_price = -1;
  // By node, where it is a fused attention whose keys and values travel around a ring when it runs
  // as the alternative: by what index its keys run. Null for all others; may be empty.
  std::vector<const Factor*> ring;
  // Nodes that must not run as the alternative although they could.
  std::vector<bool> alternative_forbidden;
  int64_t collective_price = 0;  // bytes that starting one collective is worth
};

struct AxisPlan {
  std::vector<Label> labels;                                       // by node
  std::vector<std::array<std::optional<Strategy>, 2>> strategies;  // by node and label
  std::vector<bool> gathered;  // by node: neither label could split it, so it runs whole everywhere
  int64_t cut_bytes = 0;       // value of the cut: bytes moved + collective prices + penalties
  int64_t penalty_bytes = 0;   // of which: prices of what is computed whole on every rank
  // Costs that the cut could only bound from above (no such case is known to matter).
  int64_t overestimate_bytes = 0;

  const Strategy& chosen(NodeId node) const {
    return *strategies[node.index()][static_cast<size_t>(labels[node.index()])];
  }
};

AxisPlan plan_axis(const FactorAnalysis& analysis, const AxisProblem& problem);

// With labels that were chosen at another length. Throws Error where an operator cannot run so.
AxisPlan plan_axis_as(const FactorAnalysis& analysis, const AxisProblem& problem,
                      const std::vector<Label>& labels);

// What the chosen strategies make move: for every value, the bytes of each distinct layout that its
// readers need, by the same formulas as the cut. Equal to cut_bytes less penalties and prices.
struct Traffic {
  int64_t bytes = 0;
  int64_t collectives = 0;
};
Traffic planned_traffic(const FactorAnalysis& analysis, const AxisProblem& problem,
                        const AxisPlan& plan);

}  // namespace autosp::shard

// The sharding plan of a training graph: for every operator, the layout of each operand and result
// over the mesh.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "shard/attention.h"
#include "shard/axis_plan.h"
#include "shard/factors.h"
#include "shard/layout.h"
#include "shard/query_positions.h"
#include "shard/ring.h"
#include "shard/roles.h"
#include "shard/sp_division.h"

namespace autosp::shard {

struct PlanOptions {
  int64_t sp = 1;                          // sequence-parallel ranks
  int64_t dp = 1;                          // data-parallel ranks
  std::map<std::string, int64_t> sp_mesh;  // sizes of "r", "g" and "u"; empty: chosen
  bool strict = false;                     // an operator that must be gathered is an error
  bool ring = false;                       // on r, keys and values travel instead of being gathered
  bool zigzag = false;                     // and tokens are in zigzag order where that balances
};

// An operator that can be neither split nor exchanged: its operands are gathered.
struct GatheredOperator {
  NodeId node;
  std::string axis;
  int64_t bytes = 0;  // received per rank to gather its operands
  std::string reason;
};

// A fused attention on axis r whose keys and values are gathered though a ring was asked for.
struct RingRefusal {
  NodeId node;
  std::string reason;
};

class Plan {
 public:
  const ir::Graph& graph() const { return analysis->graph(); }

  std::shared_ptr<const FactorAnalysis> analysis;
  Mesh mesh{{}};
  Roles roles;
  HomeClasses home;
  AttentionSites attention;
  FactorChoice query_positions;       // inside attention, by node
  std::vector<AxisProblem> problems;  // by mesh axis
  std::vector<AxisPlan> axes;         // by mesh axis
  std::vector<GatheredOperator> gathered;
  std::vector<bool> on_ring;  // by node: a fused attention whose keys and values travel over axis r
  std::vector<RingRefusal> ring_refusals;
  bool ring_asked = false;    // whether the options ask for a ring
  bool zigzag_asked = false;  // and for zigzag order on it (transforms/ring_attention)

  bool has_ring() const { return std::ranges::find(on_ring, true) != on_ring.end(); }
  bool is_on_ring(NodeId node) const { return !on_ring.empty() && on_ring[node.index()]; }
  // The mesh axis of that name; the number of axes where there is none.
  size_t axis_named(const std::string& name) const;

  Layout operand_layout(NodeId node, size_t operand) const;
  Layout result_layout(NodeId node, size_t result) const;
  // Leaves are replicated; other values have their producer's layout.
  Layout value_layout(ValueId value) const;

  // Extents of the sequence (largest tagged dimension), KV heads and head groups; 0 when unknown.
  int64_t sequence_extent = 0;
  // The most ranks that have a part of the sequence everywhere: the positions of the shortest
  // tagged dimension, or its blocks where the model divides it, padded or not; 0 when unknown.
  int64_t most_sequence_ranks = 0;
  int64_t kv_heads = 0;
  int64_t head_groups = 0;
  AttentionSizes attention_sizes() const;
};

// Plans a canonical graph. The graph must outlive the plan.
//
// Throws Error when there is no sequence to split, when a size exceeds what it splits (more ranks
// than tokens, a mesh that leaves a rank without a head), or, under `strict`, when an operator must
// be gathered.
Plan make_plan(const ir::Graph& graph, Roles roles, const PlanOptions& options);

// The mesh and the choices of `like`, a plan of the same model at another length, on `graph`, where
// extents and cut points are others. Throws Error when the graphs differ in their operators.
Plan make_plan_like(const ir::Graph& graph, Roles roles, const PlanOptions& options,
                    const Plan& like);

// Why a value is laid out as it is: its dimensions, its layout over each axis, what its producer's
// other option would have been and what the value's exchange costs. Several lines.
std::string explain(const Plan& plan, ValueId value);

}  // namespace autosp::shard

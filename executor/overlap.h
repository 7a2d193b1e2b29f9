// Collectives beside computation: where in the order of a graph's nodes they begin, and by which
// node they must have ended.
#pragma once

#include <memory>
#include <vector>

#include "ir/graph.h"

namespace autosp::executor {

// The graph with its nodes in another order, in which collectives begin early:
//   - what a collective needs goes ahead of neighbours that it does not need, which then run while
//     it is under way;
//   - one that needs inputs of the graph alone (a parameter that ranks share out) begins when the
//     one of this kind before it is first read, so that one is fetched ahead of its use.
// One that sends on what a collective has received stays where it is. Collectives stay in their
// order among themselves, which all ranks must agree on.
ir::Graph start_collectives_early(const ir::Graph& graph);

// When each collective must have ended, if all run one after the other beside the nodes.
struct CollectiveDeadlines {
  // By node: how many collectives of the graph must have ended before it runs, which for
  // collectives themselves means nothing: each begins after the one before it.
  std::vector<int> ended_before;
  // By node, of collectives: the node (or their number) that waits for it first. Until then it may
  // read its operands and write its results.
  std::vector<int> waited_for_by;
};
CollectiveDeadlines collective_deadlines(const ir::Graph& graph);

}  // namespace autosp::executor

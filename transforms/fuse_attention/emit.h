// Replaces verified regions by Attention and AttentionGrad.
#pragma once

#include "transforms/fuse_attention/region_plan.h"

namespace autosp::transforms::fusion {

// Whether replacing these regions would make a value depend on itself: a softmax over queries is,
// to the numbers, an attention whose values are gradients of its own output. Returns, by region,
// the reason why it must stay, or "". Regions are accepted in order.
std::vector<std::string> find_cycles(const GraphFacts& facts,
                                     const std::vector<const RegionPlan*>& plans);

// The graph with every planned region replaced. No two of them may depend on each other in a cycle.
ir::Graph replace_regions(const GraphFacts& facts, const std::vector<const RegionPlan*>& plans);

}  // namespace autosp::transforms::fusion

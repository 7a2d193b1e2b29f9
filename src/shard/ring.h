// Ring attention on the axis of query positions: keys and values stay split by their own positions
// and travel from rank to rank, block by block, instead of being gathered. This says where that is
// possible; transforms/ring_attention makes it happen.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "shard/attention.h"
#include "shard/factors.h"
#include "shard/layout.h"

namespace autosp::shard {

// Positions of operands of autosp::Attention or autosp::AttentionGrad (docs/attention.md).
struct AttentionOperands {
  size_t query = 0;
  size_t key = 1;
  size_t value = 2;
  size_t bias = 3;
  size_t begin = 4;
  size_t end = 5;
  size_t key_mask = 6;
  size_t query_segment = 7;
  size_t key_segment = 8;
  size_t sink = 9;
};

// Nothing for any other operator.
std::optional<AttentionOperands> attention_operands(const ir::Node& node);

// The factors of a fused attention that its keys and its queries run over, where that is the
// sequence; else null.
const Factor* key_positions(const FactorAnalysis& analysis, NodeId id, const HomeClasses& home);
const Factor* query_positions(const FactorAnalysis& analysis, NodeId id, const HomeClasses& home);

// Whether the keys' positions are several dimensions (rows and columns of patches) of which one
// that is not the major one is the sequence: a ring passes stretches of the major one on.
bool has_minor_positions(const FactorAnalysis& analysis, NodeId id, const HomeClasses& home);

// Makes the layouts of one axis over a fused attention's operands and results those of a ring: keys
// and values, and their gradients, are split by their own positions.
void split_by_keys(const ir::Node& node, const Factor& keys, const Cuts& cuts, bool nested,
                   std::vector<AxisLayout>& operands, std::vector<AxisLayout>& results);

// Whether a fused attention says what rows without any visible key weigh all keys by, and may have
// such rows: neither known intervals nor a sink show that there are none.
bool has_unseen_rows(const ir::Graph& graph, const ir::Node& node);

// Why a fused attention has no ring, in a few words; "" where it may have one. Partial results of
// blocks are merged by their rows' maxima and sums. Rows without any visible key that weigh all
// keys alike are added to these; what they do otherwise is refused, and the gradient of a bias.
std::string why_no_ring(const ir::Graph& graph, const ir::Node& node);

}  // namespace autosp::shard

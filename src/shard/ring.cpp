#include "shard/ring.h"

#include <algorithm>

#include "ir/operator_traits.h"

namespace autosp::shard {

namespace {

// Whether every row sees a key by known intervals alone.
bool rows_see_keys(const ir::Graph& graph, const ir::Node& node, const AttentionOperands& at) {
  if (node.input(at.sink)) return true;
  if (node.input(at.key_mask) || node.input(at.query_segment)) return false;
  const ValueId begin = node.input(at.begin);
  const ValueId end = node.input(at.end);
  const auto begins = graph.constant_ints(begin);
  const auto ends = graph.constant_ints(end);
  if ((begin && !begins) || (end && !ends)) return false;
  const int64_t keys = graph.shape(node.inputs[at.key])[2];
  const size_t rows = std::max(begins ? begins->size() : 1, ends ? ends->size() : 1);
  for (size_t k = 0; k < rows; ++k) {
    const int64_t from = begins ? std::max<int64_t>((*begins)[k % begins->size()], 0) : 0;
    const int64_t to = ends ? std::min((*ends)[k % ends->size()], keys) : keys;
    if (from >= to) return false;
  }
  return true;
}

}  // namespace

std::optional<AttentionOperands> attention_operands(const ir::Node& node) {
  if (node.domain != ir::kAutospDomain) return std::nullopt;
  if (node.op == "Attention") return AttentionOperands();
  if (node.op != "AttentionGrad") return std::nullopt;
  return AttentionOperands{.query = 1,
                           .key = 2,
                           .value = 3,
                           .bias = 7,
                           .begin = 8,
                           .end = 9,
                           .key_mask = 10,
                           .query_segment = 11,
                           .key_segment = 12,
                           .sink = 13};
}

namespace {

// The factor that is the major positions of all these operands.
const Factor* positions(const FactorAnalysis& analysis, NodeId id, const HomeClasses& home,
                        std::initializer_list<size_t> operands) {
  constexpr AtomPosition kMajor{.dim = 2, .atom = 0};
  const auto& factors = analysis.node(id).factors;
  const auto found = std::ranges::find_if(factors, [&](const Factor& factor) {
    return std::ranges::all_of(operands, [&](size_t k) { return factor.operands[k] == kMajor; }) &&
           home.sequence.contains(analysis.class_of(factor.atom));
  });
  return found == factors.end() ? nullptr : &*found;
}

}  // namespace

const Factor* key_positions(const FactorAnalysis& analysis, NodeId id, const HomeClasses& home) {
  const auto at = attention_operands(analysis.graph().node(id));
  return at ? positions(analysis, id, home, {at->key, at->value}) : nullptr;
}

const Factor* query_positions(const FactorAnalysis& analysis, NodeId id, const HomeClasses& home) {
  const auto at = attention_operands(analysis.graph().node(id));
  return at ? positions(analysis, id, home, {at->query}) : nullptr;
}

bool has_minor_positions(const FactorAnalysis& analysis, NodeId id, const HomeClasses& home) {
  const auto at = attention_operands(analysis.graph().node(id));
  return at && std::ranges::any_of(analysis.node(id).factors, [&](const Factor& factor) {
           const auto& place = factor.operands[at->key];
           return place && place->dim == 2 && place->atom > 0 &&
                  home.sequence.contains(analysis.class_of(factor.atom));
         });
}

void split_by_keys(const ir::Node& node, const Factor& keys, const Cuts& cuts, bool nested,
                   std::vector<AxisLayout>& operands, std::vector<AxisLayout>& results) {
  const AttentionOperands at = *attention_operands(node);
  for (size_t k : {at.key, at.value}) {
    operands[k] = AxisLayout::split(*keys.operands[k], cuts, nested);
  }
  for (size_t k = 0; k < results.size(); ++k) {
    if (keys.results[k]) results[k] = AxisLayout::split(*keys.results[k], cuts, nested);
  }
}

bool has_unseen_rows(const ir::Graph& graph, const ir::Node& node) {
  const std::string dead = node.attributes.get_string("dead_rows", "none");
  return dead != "none" && dead != "zero" && !rows_see_keys(graph, node, *attention_operands(node));
}

std::string why_no_ring(const ir::Graph& graph, const ir::Node& node) {
  const auto at = attention_operands(node);
  if (!at) return "it is no fused attention";
  if (has_unseen_rows(graph, node)) {
    const std::string dead = node.attributes.get_string("dead_rows", "none");
    const bool is_linear = node.attributes.get_float("softcap", 0) == 0 ||
                           node.attributes.get_int("dead_row_gradient", 0) == 0;
    if (dead != "uniform" || !is_linear || ir::drops_weights(node))
      return fmt::format("rows without a visible key weigh keys ({})", dead);
  }
  if (node.output(3)) return "its bias is trained";
  return "";
}

}  // namespace autosp::shard

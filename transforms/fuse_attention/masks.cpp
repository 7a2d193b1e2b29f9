#include "transforms/fuse_attention/masks.h"

#include <algorithm>
#include <limits>

#include "reference/kernels.h"
#include "transforms/canonicalize/constants.h"
#include "transforms/fuse_attention/dissector.h"

namespace autosp::transforms::fusion {

using ir::Graph;
using ir::Node;
using ir::Tensor;

namespace {

std::optional<Tensor> evaluate_known(const GraphFacts& facts, ValueId value, int& budget) {
  const Graph& graph = facts.graph();
  if (graph.is_constant(value)) return graph.constant(value);
  const Node* node = graph.producer(value);
  if (node == nullptr || is_random(*node) || !node->domain.empty() || --budget < 0) {
    return std::nullopt;
  }
  if (graph.type(value).num_elements() > kMostKnownElements) return std::nullopt;
  std::vector<Tensor> operands;
  for (ValueId input : node->inputs) {
    operands.emplace_back();
    if (!input) continue;
    auto operand = evaluate_known(facts, input, budget);
    if (!operand) return std::nullopt;
    operands.back() = *operand;
  }
  if (reference::find_kernel(node->domain, node->op) == nullptr) return std::nullopt;
  return reference::evaluate(graph, *node,
                             operands)[static_cast<size_t>(graph.value(value).result_index)];
}

}  // namespace

std::optional<Tensor> known_tensor(const GraphFacts& facts, ValueId value) {
  int budget = 500;  // nodes
  return evaluate_known(facts, value, budget);
}

TermParts Dissector::take_apart(const Term& term, const TermMeaning& meaning) {
  try {
    if (term.is_bool()) {
      conjunction(term.uses[0], !meaning.masking_value);
    } else {
      sum(term.uses[0]);
    }
    const std::string why =
        why_segments_stay(graph_, distinct_segments(facts_, cutout_, parts_.literals));
    if (!why.empty()) stop("{}", why);
    return std::move(parts_);
  } catch (const NotUnderstood& reason) {
    parts_ = {};
    try {
      read_entries(term.uses[0], term.is_bool(), !meaning.masking_value);
      return std::move(parts_);
    } catch (const NotUnderstood&) {
      parts_ = {};
      parts_.kept = true;
      parts_.sees_own = term.is_bool() && sees_own(term.uses[0], !meaning.masking_value);
      parts_.why_kept = reason.why;
      return std::move(parts_);
    }
  }
}

std::optional<double> Dissector::uniform(ValueId value) const {
  const auto found = cutout_.uniform.find(value);
  if (found != cutout_.uniform.end()) return found->second;
  return std::nullopt;
}

Dissector::Extent Dissector::extent_of(ValueId value) const {
  Extent extent;
  for (const AtomId atom : factors_.atoms(value)) {
    const auto among = [&](const AtomList& list) {
      return std::ranges::find(list, atom) != list.end();
    };
    extent.batch = extent.batch || among(canonical_.batch);
    extent.heads = extent.heads || among(canonical_.heads());
    extent.queries = extent.queries || among(canonical_.queries);
    extent.keys = extent.keys || among(canonical_.keys);
  }
  return extent;
}

double epsilon_of(ir::DataType dtype) {
  switch (dtype) {
    case ir::DataType::kFloat16:
      return 0x1p-10;
    case ir::DataType::kBFloat16:
      return 0x1p-7;
    case ir::DataType::kFloat64:
      return 0x1p-52;
    default:
      return 0x1p-23;
  }
}

double lowest_of(ir::DataType dtype) {
  switch (dtype) {
    case ir::DataType::kFloat16:
      return -65504;
    case ir::DataType::kBFloat16:
      return -0x1.fep127;
    case ir::DataType::kFloat64:
      return std::numeric_limits<double>::lowest();
    default:
      return std::numeric_limits<float>::lowest();
  }
}

TermParts take_apart(const GraphFacts& facts, const Cutout& cutout, const LocalFactors& factors,
                     const CanonicalFactors& canonical, const Term& term,
                     const TermMeaning& meaning, RowConstants rows, MaskMemo& memo) {
  return Dissector(facts, cutout, factors, canonical, rows, memo).take_apart(term, meaning);
}

}  // namespace autosp::transforms::fusion

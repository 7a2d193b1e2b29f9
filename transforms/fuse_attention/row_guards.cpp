#include "transforms/fuse_attention/row_guards.h"

#include <algorithm>
#include <cmath>

namespace autosp::transforms::fusion {

using ir::Graph;
using ir::Node;

namespace {

// What is reduced along which axis, where a value says that the row's maximum is minus infinity.
struct RowMaximum {
  ValueId of;
  size_t axis = 0;
};

std::optional<RowMaximum> compared_maximum(const GraphFacts& facts, ValueId value) {
  const Graph& graph = facts.graph();
  const Node* equal = graph.producer(value);
  if (equal == nullptr || !equal->is("Equal")) return std::nullopt;
  for (const size_t k : {0, 1}) {
    const auto number = facts.uniform(equal->input(1 - k));
    if (!number || *number != -INFINITY) continue;
    const Node* maximum = graph.producer(equal->input(k));
    if (maximum == nullptr || !maximum->is("ReduceMax")) continue;
    const auto axes = graph.constant_ints(maximum->input(1));
    if (!axes || axes->size() != 1) continue;
    const ValueId of = maximum->input(0);
    return RowMaximum{.of = of, .axis = ir::normalize_axis((*axes)[0], graph.shape(of).size())};
  }
  return std::nullopt;
}

}  // namespace

std::optional<size_t> guarded_term(const GraphFacts& facts, const Cutout& cutout,
                                   const LocalFactors& factors, const CanonicalFactors& canonical,
                                   const std::vector<Term>& terms, const Meaning& meaning,
                                   const std::vector<TermParts>& parts, size_t guard) {
  if (meaning.terms[guard].kind != TermKind::kMask || !meaning.terms[guard].masking_value) {
    return std::nullopt;
  }
  const auto maximum = compared_maximum(facts, terms[guard].root);
  if (!maximum) return std::nullopt;
  const AtomList rows = factors.atoms(terms[guard].uses[0]);
  for (size_t t = 0; t < terms.size(); ++t) {
    // Biases may be minus infinity themselves.
    const bool numbers_alone = parts[t].biases.empty() && parts[t].kept_summand.empty();
    if (!numbers_alone || parts[t].several_numbers || parts[t].number != -INFINITY) continue;
    for (ValueId value = terms[t].uses[0]; value;) {
      const ValueId original = cutout.original[value.index()];
      if (original && facts.representative(original) == facts.representative(maximum->of)) {
        AtomList others;
        for (const AtomId atom : factors.atoms(value)) {
          if (std::ranges::find(canonical.keys, atom) == canonical.keys.end()) {
            others.push_back(atom);
          }
        }
        if (factors.dims(value)[maximum->axis] == canonical.keys && others == rows) return t;
      }
      const Node* node = cutout.graph.producer(value);
      value = node != nullptr && is_view(*node) ? node->input(0) : ValueId();
    }
  }
  return std::nullopt;
}

}  // namespace autosp::transforms::fusion

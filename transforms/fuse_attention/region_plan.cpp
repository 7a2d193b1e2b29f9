#include "transforms/fuse_attention/region_plan.h"

#include <algorithm>
#include <cmath>

namespace autosp::transforms::fusion {

ValueId RegionPlan::root(OperandRole role) const {
  for (const auto& [place, r] : roles.operands) {
    if (r == role) return cutout.roots.at(place);
  }
  return {};
}

std::optional<size_t> RegionPlan::sink_term() const {
  for (size_t t = 0; t < terms.size(); ++t) {
    if (meaning.terms[t].kind == TermKind::kSink) return t;
  }
  return std::nullopt;
}

std::vector<ValueId> RegionPlan::mask_operands() const {
  std::vector<ValueId> result;
  const auto add = [&](ValueId inside) {
    if (inside) result.push_back(cutout.original[inside.index()]);
  };
  for (const Literal& literal : visibility.literals) {
    add(literal.value);
    add(literal.key_segment);
  }
  for (const BiasPart& part : visibility.biases) {
    for (ValueId value : part.product) add(value);
  }
  for (const size_t t : visibility.kept) result.push_back(terms[t].root);
  for (size_t t = 0; t < terms.size(); ++t) {
    const TermKind kind = meaning.terms[t].kind;
    if (kind == TermKind::kScale || kind == TermKind::kSink) result.push_back(terms[t].root);
  }
  return result;
}

namespace {

// Nothing computed inside may be read outside, but for the four results.
void refuse_leaks(const GraphFacts& facts, const Cutout& cutout) {
  const ir::Graph& graph = facts.graph();
  for (const NodeId id : cutout.nodes) {
    for (ValueId output : graph.node(id).outputs) {
      if (!output) continue;
      const bool result = std::ranges::any_of(
          cutout.result_of, [&](const auto& entry) { return entry.second == output; });
      if (result) continue;
      if (facts.is_output(output)) {
        refuse("'{}', inside it, is an output of the graph", graph.name_of(output));
      }
      for (const NodeId reader : facts.readers(output)) {
        if (std::ranges::binary_search(cutout.nodes, reader)) continue;
        refuse("'{}', inside it, is also read by {}", graph.name_of(output),
               graph.describe(graph.node(reader)));
      }
    }
  }
}

// The interval of keys that each query sees, as far as it is known now and the same for the batch.
struct KnownIntervals {
  int64_t queries = 0;
  int64_t keys = 0;
  std::vector<int64_t> begin;
  std::vector<int64_t> end;
};

KnownIntervals known_intervals(const RegionPlan& plan) {
  const Sizes sizes(*plan.factors, plan.canonical);
  KnownIntervals known{.queries = sizes.product(plan.canonical.queries),
                       .keys = sizes.product(plan.canonical.keys),
                       .begin = {},
                       .end = {}};
  const auto rows = static_cast<size_t>(known.queries);
  known.begin.assign(rows, 0);
  known.end.assign(rows, known.keys);
  for (const Literal& literal : plan.visibility.literals) {
    for (size_t k = 0; k < literal.begin.size(); ++k) {
      known.begin[k % rows] = std::max(known.begin[k % rows], literal.begin[k]);
      known.end[k % rows] = std::min(known.end[k % rows], literal.end[k]);
    }
  }
  return known;
}

// What a vector is a rearranged copy of.
ValueId source_of(const GraphFacts& facts, ValueId value) {
  for (const ir::Node* node = facts.graph().producer(value); node != nullptr && is_view(*node);
       node = facts.graph().producer(value)) {
    value = node->inputs[0];
  }
  return facts.representative(value);
}

// Whether some row may see no key under these literals.
bool may_be_dead(const GraphFacts& facts, const RegionPlan& plan) {
  if (plan.sink_term()) return false;  // every row sees the sink
  bool own_segment = false;
  for (const Literal& literal : plan.visibility.literals) {
    if (literal.kind == Literal::Kind::kInterval) continue;
    const bool own = literal.kind == Literal::Kind::kSameSegment &&
                     source_of(facts, plan.cutout.original[literal.value.index()]) ==
                         source_of(facts, plan.cutout.original[literal.key_segment.index()]);
    if (!own) return true;
    own_segment = true;
  }
  const KnownIntervals known = known_intervals(plan);
  for (size_t i = 0; i < known.begin.size(); ++i) {
    if (known.begin[i] >= known.end[i]) return true;
    // A query sees its own segment at its own position at least.
    const auto self = static_cast<int64_t>(i);
    if (own_segment && !(known.begin[i] <= self && self < known.end[i])) return true;
  }
  return false;
}

std::string describe(const RegionPlan& plan) {
  std::vector<std::string> words;
  const auto say = [&](std::string word) {
    if (std::ranges::find(words, word) == words.end()) words.push_back(std::move(word));
  };
  const KnownIntervals known = known_intervals(plan);
  const std::string name = name_intervals(known.begin, known.end, known.queries, known.keys);
  if (name != "full") say(name);
  for (const Literal& literal : plan.visibility.literals) {
    switch (literal.kind) {
      case Literal::Kind::kInterval:
        break;
      case Literal::Kind::kBegin:
      case Literal::Kind::kEnd:
        say("positions");
        break;
      case Literal::Kind::kKeys:
      case Literal::Kind::kKnownKeys:
        say("key mask");
        break;
      case Literal::Kind::kQueries:
        say("query mask");
        break;
      case Literal::Kind::kSameSegment:
        say("segments");
        break;
    }
  }
  bool kept_summand = false;
  for (const TermParts& parts : plan.parts) {
    if (parts.kept_summand.empty()) continue;
    kept_summand = true;
    say(fmt::format("bias kept ('{}' is given over queries and keys)", parts.kept_summand));
  }
  if (!plan.visibility.biases.empty() && !kept_summand) say("bias vector");
  if (plan.sink_term()) say("sink");
  for (const size_t t : plan.visibility.kept) {
    say(fmt::format("bias kept ({})", plan.parts[t].why_kept));
  }
  return words.empty() ? "none" : fmt::format("{}", fmt::join(words, ", "));
}

// What float32 makes of a row in which every score has had this number added.
DeadRows rounded_dead_rows(double number, DeadRows exact) {
  if (!std::isfinite(number) || exact != DeadRows::kUnmasked) return exact;
  constexpr double kSwallows = 1e8;  // the spacing of float32 there is 8 and more
  constexpr double kKeeps = 1e6;     // and here at most 1/16
  if (-number >= kSwallows) return DeadRows::kUniform;
  if (-number <= kKeeps) return DeadRows::kUnmasked;
  refuse("rows without a key depend on how {} rounds", number);
}

void collect_visibility(const GraphFacts& facts, RegionPlan& plan) {
  Visibility& all = plan.visibility;
  for (size_t t = 0; t < plan.terms.size(); ++t) {
    const TermParts& parts = plan.parts[t];
    if (parts.kept) {
      all.kept.push_back(t);
      continue;
    }
    all.literals.insert(all.literals.end(), parts.literals.begin(), parts.literals.end());
    all.biases.insert(all.biases.end(), parts.biases.begin(), parts.biases.end());
  }
  all.may_be_dead = may_be_dead(facts, plan);
  all.description = describe(plan);
}

// Dead rows: proven not to exist, or known what they give.
void settle_dead_rows(RegionPlan& plan) {
  for (const size_t t : plan.visibility.kept) {
    if (plan.terms[t].is_bool() &&
        !(plan.verified.dead_rows == DeadRows::kUniform && plan.verified.dead_row_gradient)) {
      refuse("the mask '{}' is no vector: {}", plan.cutout.graph.name_of(plan.terms[t].uses[0]),
             plan.parts[t].why_kept);
    }
  }
  if (!plan.visibility.may_be_dead) {
    plan.verified.dead_rows = DeadRows::kNone;
    plan.verified.dead_row_gradient = false;
    return;
  }
  if (!plan.verified.dead_rows_known) refuse("what rows without a key give, no formula says");
  for (const TermParts& parts : plan.parts) {
    if (parts.several_numbers) refuse("rows without a key mix different masking numbers");
    if (parts.number && !parts.kept) {
      plan.verified.dead_rows = rounded_dead_rows(*parts.number, plan.verified.dead_rows);
    }
  }
}

// The gradient of a trained bias has all of the batch or none of it, and heads likewise.
void check_bias_gradient(const RegionPlan& plan) {
  const CanonicalFactors& c = plan.canonical;
  if (!plan.cutout.results.contains(ResultRole::kBiasGradient)) return;
  const std::string& name =
      plan.cutout.graph.name_of(plan.cutout.results.at(ResultRole::kBiasGradient));
  const auto held = [&](const AtomList& group) {
    return static_cast<size_t>(std::ranges::count_if(group, [&](AtomId atom) {
      return std::ranges::find(c.bias_gradient, atom) != c.bias_gradient.end();
    }));
  };
  for (const AtomList& group : {c.batch, c.heads()}) {
    if (held(group) != 0 && held(group) != group.size()) {
      refuse("'{}' is summed over some heads only", name);
    }
  }
  if (held(c.queries) == 0 || held(c.keys) == 0) refuse("'{}' is read outside it", name);
  const bool has_bias = std::ranges::any_of(plan.meaning.terms, [](const TermMeaning& meaning) {
    return meaning.kind == TermKind::kAdd;
  });
  if (!has_bias) refuse("'{}' is read outside it, and there is no bias", name);
}

void fill_report(RegionPlan& plan) {
  const Sizes sizes(*plan.factors, plan.canonical);
  AttentionRegion& report = plan.report;
  report.fused = true;
  report.backward = plan.has_backward();
  report.batch = sizes.product(plan.canonical.batch);
  report.heads = sizes.product(plan.canonical.heads());
  report.kv_heads = sizes.product(plan.canonical.kv_heads);
  report.queries = sizes.product(plan.canonical.queries);
  report.keys = sizes.product(plan.canonical.keys);
  report.scale = plan.meaning.scale;
  report.softcap = plan.meaning.softcap;
  report.mask = plan.visibility.description;
  report.dead_rows = name_of(plan.verified.dead_rows);
  report.error = plan.verified.error;
}

}  // namespace

std::unique_ptr<RegionPlan> plan_region(const GraphFacts& facts, const Region& region) {
  auto result = std::make_unique<RegionPlan>();
  RegionPlan& plan = *result;
  plan.roles = find_roles(facts, region);
  plan.cutout = cut_out(facts, region, &plan.roles);
  refuse_leaks(facts, plan.cutout);
  plan.factors = std::make_unique<LocalFactors>(facts, plan.cutout);
  plan.canonical = find_canonical_factors(facts, *plan.factors, plan.cutout, plan.roles);
  plan.terms = find_terms(facts, plan.cutout, *plan.factors, plan.canonical);
  const BlackBox square(plan.cutout, *plan.factors, plan.canonical, plan.roles, plan.terms, facts,
                        true);
  plan.meaning = infer_meaning(facts, square, plan.terms);
  const auto sinks = std::ranges::count_if(plan.meaning.terms, [](const TermMeaning& meaning) {
    return meaning.kind == TermKind::kSink;
  });
  check_bias_gradient(plan);
  if (sinks > 1) refuse("{} sinks join one softmax", sinks);
  if ((sinks == 0) != plan.canonical.keys_and_sink.empty())
    refuse("scores have a column that is no sink");
  std::vector<std::optional<double>> numbers;
  for (size_t t = 0; t < plan.terms.size(); ++t) {
    const TermKind kind = plan.meaning.terms[t].kind;
    TermParts parts;
    if (kind == TermKind::kMask || kind == TermKind::kAdd) {
      parts = take_apart(facts, plan.cutout, *plan.factors, plan.canonical, plan.terms[t],
                         plan.meaning.terms[t]);
    }
    numbers.push_back(parts.number);
    plan.parts.push_back(std::move(parts));
  }
  const BlackBox box(plan.cutout, *plan.factors, plan.canonical, plan.roles, plan.terms, facts,
                     false);
  plan.verified = verify_region(box, plan.cutout, plan.meaning, plan.terms, numbers);
  collect_visibility(facts, plan);
  settle_dead_rows(plan);
  fill_report(plan);
  return result;
}

}  // namespace autosp::transforms::fusion

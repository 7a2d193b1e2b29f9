#include "transforms/fuse_attention/region_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "transforms/fuse_attention/mask_check.h"
#include "transforms/fuse_attention/row_guards.h"

namespace autosp::transforms::fusion {

using ir::Node;

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

bool RegionPlan::has_sink() const {
  return sink_term().has_value() || std::isfinite(meaning.known_sink);
}

std::optional<size_t> RegionPlan::drop_term() const {
  for (size_t t = 0; t < terms.size(); ++t) {
    if (terms[t].drop) return t;
  }
  return std::nullopt;
}

ir::DataType RegionPlan::dtype(const GraphFacts& facts) const {
  return facts.graph().type(facts.graph().node(roles.scores).inputs[0]).dtype;
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
    const bool is_operand =
        kind == TermKind::kScale || kind == TermKind::kSink || kind == TermKind::kFactor;
    if (is_operand) result.push_back(terms[t].root);
  }
  return result;
}

namespace {

// The coarsest rounding between the sum of scores and a term, and their normalisation.
double epsilon_of_sum(const ir::Graph& graph, const Term& term) {
  enum class Holds : uint8_t { kNothing, kTerm, kSum };
  std::vector<Holds> holds(graph.values().size(), Holds::kNothing);
  for (ValueId use : term.uses) holds[use.index()] = Holds::kTerm;
  double epsilon = 0;
  for (const ir::Node& node : graph.nodes()) {
    if (!(is_elementwise(node) || is_view(node) || node.is("Expand")) || node.is("Exp")) continue;
    Holds most = Holds::kNothing;
    bool others = false;
    for (ValueId input : node.inputs) {
      if (!input) continue;
      most = std::max(most, holds[input.index()]);
      others = others || (holds[input.index()] == Holds::kNothing && graph.producer(input));
    }
    if (most == Holds::kNothing) continue;
    if (others && (node.is("Add") || node.is("Sub") || node.is("Sum"))) most = Holds::kSum;
    const ir::DataType dtype = graph.type(node.outputs[0]).dtype;
    holds[node.outputs[0].index()] = most;
    if (most == Holds::kSum && is_floating(dtype)) epsilon = std::max(epsilon, epsilon_of(dtype));
  }
  return epsilon;
}

// The number that stands for an additive mask's in verification, which is in float64. A number
// whose neighbours are 32 apart or more swallows the scores it is added to: so does the one
// returned. One with neighbours 2^-10 apart leaves them; in between, rounding shows.
std::optional<double> swallowing(const RegionPlan& plan, size_t t, TermParts& parts) {
  if (!parts.number || !std::isfinite(*parts.number)) return parts.number;
  const double spacing =
      std::ldexp(epsilon_of_sum(plan.cutout.graph, plan.terms[t]), std::ilogb(*parts.number));
  if (spacing >= kSwallowingSpacing) return std::min(*parts.number, -1e30);
  parts.rounding_shows = spacing > 0x1p-10;
  return parts.number;
}

// Takes masks and biases apart.
void read_terms(const GraphFacts& facts, RegionPlan& plan, MaskMemo& memo) {
  const bool has_sink = plan.has_sink();
  const RowConstants rows{.count = has_sink, .are_rounded = element_size(plan.dtype(facts)) == 2};
  plan.parts.resize(plan.terms.size());
  for (size_t t = 0; t < plan.terms.size(); ++t) {
    const TermKind kind = plan.meaning.terms[t].kind;
    if (kind != TermKind::kMask && kind != TermKind::kAdd) continue;
    plan.parts[t] = take_apart(facts, plan.cutout, *plan.factors, plan.canonical, plan.terms[t],
                               plan.meaning.terms[t], rows, memo);
    check_parts(facts, plan.cutout, *plan.factors, plan.canonical, plan.terms[t],
                plan.meaning.terms[t], plan.parts[t], has_sink);
  }
  for (size_t t = 0; t < plan.terms.size(); ++t) {
    if (guarded_term(facts, plan.cutout, *plan.factors, plan.canonical, plan.terms, plan.meaning,
                     plan.parts, t)) {
      plan.parts[t] = {.implied = true};
    }
  }
}

// Says who reads a value of the inside.
[[noreturn]] void refuse_leak(const GraphFacts& facts, const Cutout& cutout, ValueId leak) {
  const ir::Graph& graph = facts.graph();
  for (const NodeId reader : facts.readers(leak)) {
    if (std::ranges::binary_search(cutout.nodes, reader)) continue;
    refuse("'{}', inside it, is also read by {}", graph.name_of(leak),
           graph.describe(graph.node(reader)));
  }
  refuse("'{}', inside it, is an output of the graph", graph.name_of(leak));
}

// Nothing computed inside may be read outside, but for the results.
void refuse_leaks(const GraphFacts& facts, const Cutout& cutout) {
  for (const NodeId id : cutout.nodes) {
    for (ValueId output : facts.graph().node(id).outputs) {
      if (!output) continue;
      const bool is_result = std::ranges::any_of(
          cutout.result_of, [&](const auto& entry) { return entry.second == output; });
      const bool leaves = std::ranges::any_of(facts.readers(output), [&](NodeId reader) {
        return !std::ranges::binary_search(cutout.nodes, reader);
      });
      if (!is_result && (leaves || facts.is_output(output))) refuse_leak(facts, cutout, output);
    }
  }
}

// What of an interval that ends at a run-time key or a known one is seen in any case.
Literal known_part(const Literal& literal) {
  if (literal.kind != Literal::Kind::kEnd || !literal.end) return literal;
  Literal known{.kind = Literal::Kind::kInterval, .end = literal.end};
  known.begin = std::make_shared<const std::vector<int64_t>>(literal.end->size(), 0);
  return known;
}

// Whether some row may see no key under these literals.
bool may_be_dead(const GraphFacts& facts, const RegionPlan& plan, MaskMemo& memo) {
  if (plan.has_sink()) return false;  // every row sees the sink
  bool own_segment = false;
  std::vector<Literal> literals;
  std::ranges::transform(plan.visibility.literals, std::back_inserter(literals), known_part);
  for (const Literal& literal : literals) {
    if (literal.kind == Literal::Kind::kInterval) continue;
    const bool own = literal.kind == Literal::Kind::kSameSegment &&
                     source_of(facts, plan.cutout.original[literal.value.index()]) ==
                         source_of(facts, plan.cutout.original[literal.key_segment.index()]);
    if (!own) return true;
    own_segment = true;
  }
  const Sizes sizes(*plan.factors, plan.canonical);
  const KnownIntervals& known = *memo.intersect(literals, sizes.product(plan.canonical.queries),
                                                sizes.product(plan.canonical.keys));
  // A query sees its own segment at its own position at least.
  return known.some_empty || (own_segment && known.some_miss_own_position);
}

std::string describe(const RegionPlan& plan) {
  std::vector<std::string> words;
  const auto say = [&](std::string word) {
    if (std::ranges::find(words, word) == words.end()) words.push_back(std::move(word));
  };
  if (plan.visibility.intervals->name != "full") say(plan.visibility.intervals->name);
  for (const Literal& literal : plan.visibility.literals) {
    switch (literal.kind) {
      case Literal::Kind::kInterval:
        break;
      case Literal::Kind::kBegin:
      case Literal::Kind::kEnd:
        say(literal.end ? "known intervals or positions" : "positions");
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
  if (plan.has_sink()) say("sink");
  for (const TermMeaning& meaning : plan.meaning.terms) {
    if (meaning.kind == TermKind::kFactor) say("factor per query");
  }
  for (const size_t t : plan.visibility.kept) {
    say(fmt::format("bias kept ({})", plan.parts[t].why_kept));
  }
  return words.empty() ? "none" : fmt::format("{}", fmt::join(words, ", "));
}

// Masks over pairs hide keys by the number they add. Beside a mask of another kind, a row may see
// no key for the two together, and then all its keys count: so such masks are kept as one.
void keep_masks_together(RegionPlan& plan) {
  std::optional<size_t> kept;
  for (size_t t = 0; t < plan.terms.size() && !kept; ++t) {
    if (plan.parts[t].kept && plan.terms[t].is_bool()) kept = t;
  }
  if (!kept) return;
  const auto name = [&](size_t t) { return plan.cutout.graph.name_of(plan.terms[t].uses[0]); };
  for (size_t t = 0; t < plan.terms.size(); ++t) {
    TermParts& parts = plan.parts[t];
    if (parts.kept || parts.literals.empty()) continue;
    if (!plan.terms[t].is_bool()) {
      refuse("the mask '{}' is no vector, and '{}' is added beside it", name(*kept), name(t));
    }
    parts = {.kept = true, .why_kept = fmt::format("'{}' beside it is kept", name(*kept))};
  }
}

void collect_visibility(const GraphFacts& facts, RegionPlan& plan, MaskMemo& memo) {
  keep_masks_together(plan);
  Visibility& all = plan.visibility;
  for (size_t t = 0; t < plan.terms.size(); ++t) {
    TermParts& parts = plan.parts[t];
    if (parts.kept) {
      all.kept.push_back(t);
      continue;
    }
    std::ranges::move(parts.literals, std::back_inserter(all.literals));
    std::ranges::move(parts.biases, std::back_inserter(all.biases));
  }
  all.segments = distinct_segments(facts, plan.cutout, all.literals);
  const std::string why = why_segments_stay(plan.cutout.graph, all.segments);
  if (!why.empty()) refuse("{}", why);
  const Sizes sizes(*plan.factors, plan.canonical);
  all.intervals = memo.intersect(all.literals, sizes.product(plan.canonical.queries),
                                 sizes.product(plan.canonical.keys));
  all.may_be_dead = may_be_dead(facts, plan, memo);
  all.description = describe(plan);
}

// A mask over pairs adds a number to scores that the graph may replace by its own. In rows with a
// key both leave nothing of the others. A row without one is no number by minus infinity; by a
// finite number both give 1 / keys only where it swallows the scores, and no gradient stops.
void settle_kept_masks(const GraphFacts& facts, RegionPlan& plan) {
  const auto is_mask = [&](size_t t) { return plan.terms[t].is_bool(); };
  const bool every_row_sees = std::ranges::all_of(
      plan.visibility.kept, [&](size_t t) { return !is_mask(t) || plan.parts[t].sees_own; });
  const bool is_half = plan.dtype(facts) == ir::DataType::kFloat16;
  const Verified& verified = plan.verified;
  const bool are_nan = verified.dead_rows_known && verified.dead_rows == DeadRows::kNan;
  plan.visibility.hiding_number =
      are_nan || is_half ? -std::numeric_limits<double>::infinity() : lowest_of(plan.dtype(facts));
  if (every_row_sees || are_nan) return;
  for (const size_t t : plan.visibility.kept) {
    if (!is_mask(t)) continue;
    const std::string& name = plan.cutout.graph.name_of(plan.terms[t].uses[0]);
    if (verified.dead_rows != DeadRows::kUniform || !verified.dead_row_gradient) {
      refuse("the mask '{}' is no vector: {}", name, plan.parts[t].why_kept);
    }
    if (is_half) {
      refuse("the mask '{}' is no vector, and no float16 swallows a score", name);
    }
  }
}

// The most that a bias may take from a score, as far as the graph says: a number times bits.
double least_of(const GraphFacts& facts, const Cutout& cutout, const BiasPart& part) {
  double least = part.factor;
  for (ValueId value : part.product) {
    const auto numbers = two_numbers(facts, cutout.original[value.index()]);
    if (numbers) least *= std::min(numbers->first, numbers->second);
  }
  for (ValueId value : part.product) {
    // (1 - bits) * number, which is one value where it is a vector.
    const Node* node = facts.graph().producer(cutout.original[value.index()]);
    while (node != nullptr && (is_view(*node) || node->is("Expand") || node->is("Cast"))) {
      node = facts.graph().producer(node->input(0));
    }
    if (node == nullptr || !node->is("Mul")) continue;
    for (ValueId input : node->inputs) {
      if (const auto number = facts.uniform(input)) least *= *number;
    }
  }
  return least;
}

// Of the finite numbers that masks add to a score, or put in its place, the one nearest zero; minus
// infinity where there are none.
double weakest_mask(const RegionPlan& plan) {
  double weakest = -std::numeric_limits<double>::infinity();
  const auto consider = [&](double number) {
    if (number < kMaskingNumber && std::isfinite(number)) weakest = std::max(weakest, number);
  };
  for (const TermParts& parts : plan.parts) {
    if (parts.number && !parts.literals.empty()) consider(*parts.number);
  }
  for (const Node& node : plan.cutout.graph.nodes()) {
    if (!node.is("Where")) continue;
    for (const size_t branch : {1, 2}) {
      const auto number = plan.cutout.uniform.find(node.input(branch));
      if (number != plan.cutout.uniform.end()) consider(number->second);
    }
  }
  return weakest;
}

// A bias that hides keys is exact where masks hide others by far more, and where nothing rounds.
void check_hiding_biases(const GraphFacts& facts, const RegionPlan& plan) {
  const double mask = weakest_mask(plan);
  for (const BiasPart& part : plan.visibility.biases) {
    if (part.known) continue;
    const double least = least_of(facts, plan.cutout, part);
    if (!(least < kMaskingNumber)) continue;
    const std::string& name = plan.cutout.graph.name_of(part.product[0]);
    constexpr double kFarMore = 1e3;
    if (std::isfinite(mask) && least < mask / kFarMore) {
      refuse("rows without a key mix '{}' with a mask of the same size", name);
    }
    if (element_size(plan.dtype(facts)) == 2) {
      refuse("rows without a key depend on how '{}' rounds", name);
    }
  }
}

// Dead rows: proven not to exist, or known what they give.
void settle_dead_rows(RegionPlan& plan) {
  if (plan.has_sink() && !plan.verified.dead_rows_known) {
    refuse("rows whose keys are all masked do not see the sink alone");
  }
  if (!plan.visibility.may_be_dead) {
    plan.verified.dead_rows = DeadRows::kNone;
    plan.verified.dead_row_gradient = false;
    return;
  }
  for (const TermParts& parts : plan.parts) {
    if (parts.several_numbers) refuse("rows without a key mix different masking numbers");
    if (parts.rounding_shows) {
      refuse("rows without a key depend on how {} rounds", *parts.number);
    }
  }
  if (!plan.verified.dead_rows_known) refuse("what rows without a key give, no formula says");
}

// The gradient of a trained bias is one of queries and keys.
void check_bias_gradient(const RegionPlan& plan) {
  const CanonicalFactors& c = plan.canonical;
  if (!plan.cutout.results.contains(ResultRole::kBiasGradient)) return;
  const std::string& name =
      plan.cutout.graph.name_of(plan.cutout.results.at(ResultRole::kBiasGradient));
  for (const AtomId position : {c.queries[0], c.keys[0]}) {
    if (std::ranges::find(c.bias_gradient, position) == c.bias_gradient.end()) {
      refuse("'{}' is read outside it", name);
    }
  }
  const bool has_bias = std::ranges::any_of(plan.meaning.terms, [](const TermMeaning& meaning) {
    return meaning.kind == TermKind::kAdd;
  });
  if (!has_bias) refuse("'{}' is read outside it, and there is no bias", name);
}

// The gradient of a trained scale is the queries' times the queries: of one scale, and summed over
// whole indices.
void check_scale_gradient(const GraphFacts& facts, const RegionPlan& plan) {
  const CanonicalFactors& c = plan.canonical;
  if (!plan.cutout.results.contains(ResultRole::kScaleGradient)) return;
  const std::string& name =
      plan.cutout.graph.name_of(plan.cutout.results.at(ResultRole::kScaleGradient));
  const auto scales = std::ranges::count_if(plan.meaning.terms, [](const TermMeaning& meaning) {
    return meaning.kind == TermKind::kScale;
  });
  if (scales != 1) {
    refuse_leak(facts, plan.cutout, plan.cutout.result_of.at(ResultRole::kScaleGradient));
  }
  for (const AtomList& group : {c.batch, c.heads(), c.queries, c.keys}) {
    const auto held = std::ranges::count_if(group, [&](AtomId atom) {
      return std::ranges::find(c.scale_gradient, atom) != c.scale_gradient.end();
    });
    if ((held != 0 && static_cast<size_t>(held) != group.size()) ||
        (held != 0 && group == c.keys)) {
      refuse("'{}' is summed over a part of an index", name);
    }
  }
}

// Dropout chooses by one number per weight, and by the same one forward and backward.
void read_dropout(const GraphFacts& facts, RegionPlan& plan) {
  const auto first = plan.drop_term();
  if (!first) return;
  const auto step_of = [&](const DropTerm& drop) {
    return facts.graph().producer(drop.numbers)->input(0);
  };
  const DropTerm& drop = *plan.terms[*first].drop;
  plan.dropout = place_draws(facts, *plan.factors, plan.canonical, drop);
  for (const Term& term : plan.terms) {
    if (!term.drop) continue;
    const auto own = place_draws(facts, *plan.factors, plan.canonical, *term.drop);
    if (own != *plan.dropout || step_of(*term.drop) != step_of(drop)) {
      refuse("'{}' and '{}' drop weights each on its own",
             facts.graph().name_of(plan.terms[*first].root), facts.graph().name_of(term.root));
    }
    const CanonicalFactors& c = plan.canonical;
    if (std::max({c.batch.size(), c.kv_heads.size(), c.groups.size()}) > 1) {
      refuse("'{}' drops weights in an order of its own", facts.graph().name_of(term.root));
    }
    if (term.order != plan.canonical.full()) {
      refuse("'{}' drops several weights by one number", facts.graph().name_of(term.root));
    }
  }
  plan.dropout->scale = static_cast<float>(plan.meaning.kept_scale);
  if (plan.dtype(facts) == ir::DataType::kFloat64 &&
      plan.dropout->scale != plan.meaning.kept_scale) {
    refuse("the scale {} of weights that are kept is no float32", plan.meaning.kept_scale);
  }
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
  if (plan.dropout) report.dropout = 1 - (plan.dropout->below - plan.dropout->from);
  report.dead_rows = name_of(plan.verified.dead_rows);
  report.error = plan.verified.error;
}

// Bools of whole rows become factors of the weights. Whether there are any.
bool take_row_masks_for_factors(RegionPlan& plan) {
  bool any = false;
  for (size_t t = 0; t < plan.terms.size(); ++t) {
    const AtomList& order = plan.terms[t].order;
    const bool of_rows = std::ranges::find(order, plan.canonical.keys[0]) == order.end();
    if (plan.meaning.terms[t].kind != TermKind::kMask || !of_rows) continue;
    plan.meaning.terms[t].kind = TermKind::kFactor;
    any = true;
  }
  return any;
}

// What its masks are, and what it gives where they hide everything.
void read_and_verify(const GraphFacts& facts, RegionPlan& plan, MaskMemo& memo) {
  plan.parts.clear();
  plan.visibility = {};
  read_terms(facts, plan, memo);
  std::vector<MaskToVerify> masks;
  for (size_t t = 0; t < plan.terms.size(); ++t) {
    masks.push_back(
        {.number = swallowing(plan, t, plan.parts[t]), .implied = plan.parts[t].implied});
  }
  const BlackBox box(plan.cutout, *plan.factors, plan.canonical, plan.roles, plan.terms, facts,
                     false);
  plan.verified = verify_region(box, plan.cutout, plan.meaning, plan.terms, masks);
  collect_visibility(facts, plan, memo);
  settle_kept_masks(facts, plan);
  check_hiding_biases(facts, plan);
  settle_dead_rows(plan);
}

// A bool also hides weights that are no numbers, which a factor of the output's gradient does not:
// those of rows without a key, or whose every key is hidden by what is added at run time.
bool weights_are_numbers(const RegionPlan& plan) {
  if (plan.visibility.may_be_dead && plan.verified.dead_rows == DeadRows::kNan) return false;
  const bool kept_numbers =
      std::ranges::any_of(plan.visibility.kept, [&](size_t t) { return !plan.terms[t].is_bool(); });
  return !kept_numbers && std::ranges::all_of(plan.visibility.biases, [](const BiasPart& part) {
    return part.known.has_value();
  });
}

// A bool that makes the weights of whole rows 0 hides their keys, where masks of the scores give
// the same in rows without a key; else it is a factor of the weights.
void settle_masks(const GraphFacts& facts, RegionPlan& plan, MaskMemo& memo) {
  try {
    read_and_verify(facts, plan, memo);
  } catch (const Refused& as_masks) {
    if (!take_row_masks_for_factors(plan)) throw;
    try {
      read_and_verify(facts, plan, memo);
    } catch (const Refused&) {
      throw as_masks;
    }
    if (!weights_are_numbers(plan)) throw;
  }
}

}  // namespace

std::unique_ptr<RegionPlan> plan_region(const GraphFacts& facts, const Region& region,
                                        MaskMemo& memo) {
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
  check_scale_gradient(facts, plan);
  read_dropout(facts, plan);
  if (plan.dtype(facts) == ir::DataType::kFloat64 &&
      plan.meaning.softcap != static_cast<float>(plan.meaning.softcap)) {
    refuse("the softcap {} is no float32", plan.meaning.softcap);
  }
  if (sinks > 1) refuse("{} sinks join one softmax", sinks);
  const bool has_column = !plan.canonical.keys_and_sink.empty();
  if ((sinks == 1 && !has_column) || (has_column && !plan.has_sink()))
    refuse("scores have a column that is no sink");
  settle_masks(facts, plan, memo);
  fill_report(plan);
  return result;
}

}  // namespace autosp::transforms::fusion

#include "transforms/fuse_attention/emit.h"

#include <algorithm>
#include <cmath>

#include "ir/rewriter.h"
#include "transforms/fuse_attention/arrange.h"
#include "transforms/sixteen_bit.h"

namespace autosp::transforms::fusion {

using ir::Attributes;
using ir::DataType;
using ir::Graph;
using ir::Node;
using ir::Shape;
using ir::Tensor;
using ir::Type;

namespace {

// Copies a graph on demand: a value's producer is copied, or the operator that it is fused into is
// emitted, once everything that reads is there.
class Replacer {
 public:
  Replacer(const GraphFacts& facts, const std::vector<const RegionPlan*>& plans)
      : facts_(facts),
        rewriter_(facts.graph()),
        build_(rewriter_.build()),
        done_(facts.graph().values().size(), false),
        emitted_(plans.size()) {
    for (size_t v = 0; v < done_.size(); ++v) {
      done_[v] = facts.graph().values()[v].kind != ir::ValueKind::kResult;
    }
    for (size_t p = 0; p < plans.size(); ++p) {
      emitted_[p].plan = plans[p];
      for (const auto& [role, value] : plans[p]->cutout.result_of) fused_[value] = {p, role};
      inside_.insert(plans[p]->cutout.nodes.begin(), plans[p]->cutout.nodes.end());
    }
  }

  Graph replace() {
    for (size_t n = 0; n < facts_.graph().nodes().size(); ++n) {
      if (inside_.contains(NodeId(n))) continue;
      for (ValueId output : facts_.graph().nodes()[n].outputs) {
        if (output) make(output);
      }
    }
    for (const ir::Output& output : facts_.graph().outputs()) make(output.value);
    return std::move(rewriter_).finish();
  }

 private:
  struct Emitted {
    const RegionPlan* plan = nullptr;
    bool has_operands = false;
    bool has_forward = false;
    bool has_backward = false;
    std::vector<ValueId> operands;  // of Attention, without the first three
    ValueId query, key, value;
    ValueId plain_query;   // as the graph has it
    ValueId query_factor;  // what it is multiplied by: what scales scores, constant along keys
    ValueId divisor;       // the scale, where it divides
    double rest = 1;       // what else is in query_factor
    ValueId output, row_max, row_sum;
  };

  // The new value that stands for `value`.
  ValueId make(ValueId value) {
    if (!done_[value.index()]) {
      if (const auto fused = fused_.find(value); fused != fused_.end()) {
        Emitted& emitted = emitted_[fused->second.first];
        if (fused->second.second == ResultRole::kOutput) {
          emit_forward(emitted);
        } else {
          emit_backward(emitted);
        }
      } else {
        const Node& node = *facts_.graph().producer(value);
        for (ValueId input : node.inputs) {
          if (input) make(input);
        }
        rewriter_.copy(node);
        for (ValueId output : node.outputs) {
          if (output) done_[output.index()] = true;
        }
      }
    }
    return rewriter_.mapped(value);
  }

  // A value of the cut-out, arranged.
  ValueId operand(const RegionPlan& plan, ValueId inside, const std::vector<AtomList>& groups) {
    const ValueId value = make(plan.cutout.original[inside.index()]);
    return arrange(build_, value, plan.factors->atoms(inside), groups, *plan.factors);
  }

  static std::vector<AtomList> query_groups(const CanonicalFactors& c) {
    return {c.batch, c.heads(), c.queries, c.width};
  }
  static std::vector<AtomList> key_groups(const CanonicalFactors& c) {
    return {c.batch, c.kv_heads, c.keys, c.width};
  }
  static std::vector<AtomList> value_groups(const CanonicalFactors& c) {
    return {c.batch, c.kv_heads, c.keys, c.value_width};
  }
  static std::vector<AtomList> output_groups(const CanonicalFactors& c) {
    return {c.batch, c.heads(), c.queries, c.value_width};
  }
  // Batch, heads, queries and keys, as far as `kept` has them.
  static std::vector<AtomList> score_groups(const CanonicalFactors& c, const AtomList& kept) {
    std::vector<AtomList> groups = score_groups(c);
    for (AtomList& group : groups) {
      std::erase_if(group,
                    [&](AtomId atom) { return std::ranges::find(kept, atom) == kept.end(); });
    }
    return groups;
  }
  static std::vector<AtomList> groups_of(const CanonicalFactors& c, ResultRole role) {
    switch (role) {
      case ResultRole::kOutput:
        return output_groups(c);
      case ResultRole::kQueryGradient:
        return query_groups(c);
      case ResultRole::kKeyGradient:
        return key_groups(c);
      case ResultRole::kValueGradient:
        return value_groups(c);
      case ResultRole::kBiasGradient:
        return score_groups(c, c.bias_gradient);
      case ResultRole::kSinkGradient:
        return {c.heads()};
      case ResultRole::kScaleGradient:
        return score_groups(c, c.scale_gradient);
    }
    return {};
  }

  DataType dtype_of(const RegionPlan& plan) const { return plan.dtype(facts_); }

  ValueId role_operand(const RegionPlan& plan, OperandRole role,
                       const std::vector<AtomList>& groups) {
    const ValueId x = operand(plan, input_of(plan.cutout, plan.roles, role), groups);
    return build_.cast(x, dtype_of(plan));
  }

  void emit_operands(Emitted& emitted) {
    if (emitted.has_operands) return;
    emitted.has_operands = true;
    const RegionPlan& plan = *emitted.plan;
    const CanonicalFactors& c = plan.canonical;
    emitted.query = role_operand(plan, OperandRole::kQuery, query_groups(c));
    emitted.key = role_operand(plan, OperandRole::kKey, key_groups(c));
    emitted.value = role_operand(plan, OperandRole::kValue, value_groups(c));
    for (size_t t = 0; t < plan.terms.size(); ++t) {
      if (plan.meaning.terms[t].kind != TermKind::kScale) continue;
      ValueId factor = operand(plan, plan.terms[t].uses[0], {c.batch, c.heads(), c.queries, {}});
      factor = build_.cast(factor, dtype_of(plan));
      if (plan.meaning.terms[t].divides) {
        emitted.divisor = factor;
        factor = build_.unary("Reciprocal", factor);
      }
      emitted.query_factor =
          emitted.query_factor ? build_.binary("Mul", emitted.query_factor, factor) : factor;
    }
    // The attribute is a float32: what it lacks of a float64's scale is multiplied with the
    // queries.
    const double rest = plan.meaning.scale / static_cast<float>(plan.meaning.scale);
    if (dtype_of(plan) == DataType::kFloat64 && rest != 1) {
      emitted.rest = rest;
      const ValueId factor = build_.scalar(DataType::kFloat64, rest);
      emitted.query_factor =
          emitted.query_factor ? build_.binary("Mul", emitted.query_factor, factor) : factor;
    }
    emitted.plain_query = emitted.query;
    if (emitted.query_factor) {
      emitted.query = build_.binary("Mul", emitted.query, emitted.query_factor);
    }
    emitted.operands = {bias(plan)};
    append_interval(plan, emitted.operands);
    emitted.operands.push_back(key_mask(plan));
    append_segments(plan, emitted.operands);
    emitted.operands.push_back(sink(plan));
    emitted.operands.push_back(step(plan));
    while (!emitted.operands.empty() && !emitted.operands.back()) emitted.operands.pop_back();
  }

  // --- Bias.

  ValueId bias(const RegionPlan& plan) {
    const DataType dtype = dtype_of(plan);
    std::vector<ValueId> summands;
    for (const BiasPart& part : plan.visibility.biases) {
      summands.push_back(bias_part(plan, part, dtype));
    }
    for (const size_t t : plan.visibility.kept) {
      if (plan.terms[t].is_bool()) continue;
      const ValueId x = operand(plan, plan.terms[t].uses[0], score_groups(plan.canonical));
      summands.push_back(build_.cast(x, dtype));
    }
    if (const ValueId hidden = kept_masks(plan)) {
      const ValueId number = build_.scalar(dtype, plan.visibility.hiding_number);
      summands.push_back(build_.where(hidden, number, build_.scalar(dtype, 0)));
    }
    ValueId total;
    for (ValueId summand : summands) {
      total = total ? build_.binary("Add", total, summand) : summand;
    }
    return total && !plan.canonical.bias_gradient.empty() ? widened(plan, total) : total;
  }

  // The bias, repeated where its gradient is wanted apart.
  ValueId widened(const RegionPlan& plan, ValueId bias) {
    Shape shape = build_.shape(bias);
    const auto all = score_groups(plan.canonical);
    const auto kept = score_groups(plan.canonical, plan.canonical.bias_gradient);
    const Sizes sizes(*plan.factors, plan.canonical);
    for (size_t d = 0; d < shape.size(); ++d) {
      if (!kept[d].empty()) shape[d] = sizes.product(all[d]);
    }
    return build_.expand(bias, shape);
  }

  static std::vector<AtomList> score_groups(const CanonicalFactors& c) {
    return {c.batch, c.heads(), c.queries, c.keys};
  }

  ValueId bias_part(const RegionPlan& plan, const BiasPart& part, DataType dtype) {
    const auto groups = score_groups(plan.canonical);
    if (part.known) {
      Shape shape;
      for (const AtomId atom : part.known->order) shape.push_back(plan.factors->size(atom));
      const DataType exact = dtype == DataType::kFloat64 ? dtype : DataType::kFloat32;
      const ValueId constant = build_.constant(numbers(exact, shape, part.known->values));
      return build_.cast(arrange(build_, constant, part.known->order, groups, *plan.factors),
                         dtype);
    }
    ValueId product;
    for (ValueId value : part.product) {
      const ValueId factor = build_.cast(operand(plan, value, groups), dtype);
      product = product ? build_.binary("Mul", product, factor) : factor;
    }
    if (part.factor != 1) {
      product = build_.binary("Mul", product, build_.scalar(dtype, part.factor));
    }
    return product;
  }

  // Where any mask that is kept over queries and keys hides a key; none: no value.
  ValueId kept_masks(const RegionPlan& plan) {
    ValueId hidden;
    for (const size_t t : plan.visibility.kept) {
      if (!plan.terms[t].is_bool()) continue;
      ValueId one = operand(plan, plan.terms[t].uses[0], score_groups(plan.canonical));
      if (!plan.meaning.terms[t].masking_value) one = build_.unary("Not", one);
      hidden = hidden ? build_.binary("Or", hidden, one) : one;
    }
    return hidden;
  }

  static Tensor numbers(DataType dtype, const Shape& shape, const std::vector<double>& values) {
    Tensor tensor(Type{dtype, shape});
    if (dtype == DataType::kFloat64) {
      std::ranges::copy(values, tensor.mutable_values<double>().begin());
    } else {
      std::ranges::transform(values, tensor.mutable_values<float>().begin(),
                             [](double value) { return static_cast<float>(value); });
    }
    return tensor;
  }

  // --- Vectors.

  // A known vector, one constant for all layers.
  ValueId constant(const SharedIntegers& vector, int64_t extent, const std::string& name) {
    if (!vector) return {};
    const auto [entry, is_new] = constants_.try_emplace({vector, extent});
    if (is_new) {
      const Shape shape = {static_cast<int64_t>(vector->size()) / extent, extent};
      entry->second = build_.constant(Tensor::int64s(*vector).reshaped(shape), name);
    }
    return entry->second;
  }

  // A vector [batch or 1, positions].
  ValueId vector_operand(const RegionPlan& plan, ValueId inside, const AtomList& positions) {
    const ValueId x = operand(plan, inside, {plan.canonical.batch, positions});
    const Sizes sizes(*plan.factors, plan.canonical);
    return build_.expand(x, {build_.shape(x)[0], sizes.product(positions)});
  }

  // Which positions a literal of kind kKeys or kQueries lets through.
  ValueId bits_of(const RegionPlan& plan, const Literal& literal, const AtomList& positions) {
    ValueId bits = vector_operand(plan, literal.value, positions);
    if (literal.condition) {
      bits = build_.binary(std::string(name_of(literal.condition->comparison)), bits,
                           build_.scalar_like(bits, literal.condition->number));
    }
    return literal.positive ? bits : build_.unary("Not", bits);
  }

  void append_interval(const RegionPlan& plan, std::vector<ValueId>& operands) {
    const Sizes sizes(*plan.factors, plan.canonical);
    const int64_t queries = sizes.product(plan.canonical.queries);
    const int64_t keys = sizes.product(plan.canonical.keys);
    const KnownIntervals& known = *plan.visibility.intervals;
    ValueId first = constant(known.begin, queries, "attention_begin");
    ValueId last = constant(known.end, queries, "attention_end");
    for (const Literal& literal : plan.visibility.literals) {
      apply_bound(plan, literal, keys, first, last);
    }
    operands.push_back(first);
    operands.push_back(last);
  }

  void apply_bound(const RegionPlan& plan, const Literal& literal, int64_t keys, ValueId& first,
                   ValueId& last) {
    const auto whole = [&](int64_t number) { return build_.scalar(DataType::kInt64, number); };
    if (literal.kind == Literal::Kind::kBegin || literal.kind == Literal::Kind::kEnd) {
      ValueId bound = build_.cast(vector_operand(plan, literal.value, plan.canonical.queries),
                                  DataType::kInt64);
      if (literal.offset != 0) bound = build_.binary("Add", bound, whole(literal.offset));
      bound = build_.binary("Max", build_.binary("Min", bound, whole(keys)), whole(0));
      if (literal.end) {
        const Sizes sizes(*plan.factors, plan.canonical);
        const int64_t queries = sizes.product(plan.canonical.queries);
        bound = build_.binary("Max", bound, constant(literal.end, queries, "attention_end"));
      }
      const bool is_begin = literal.kind == Literal::Kind::kBegin;
      ValueId& side = is_begin ? first : last;
      side = side ? build_.binary(is_begin ? "Max" : "Min", side, bound) : bound;
    } else if (literal.kind == Literal::Kind::kQueries) {
      const ValueId sees = bits_of(plan, literal, plan.canonical.queries);
      last = build_.where(sees, last ? last : whole(keys), whole(0));
    }
  }

  ValueId key_mask(const RegionPlan& plan) {
    const Sizes sizes(*plan.factors, plan.canonical);
    const int64_t keys = sizes.product(plan.canonical.keys);
    ValueId mask;
    for (const Literal& literal : plan.visibility.literals) {
      ValueId one;
      if (literal.kind == Literal::Kind::kKeys) {
        one = bits_of(plan, literal, plan.canonical.keys);
      } else if (literal.kind == Literal::Kind::kKnownKeys) {
        one = build_.cast(constant(literal.known, keys, "attention_keys"), DataType::kBool);
      } else {
        continue;
      }
      mask = mask ? build_.binary("And", mask, one) : one;
    }
    return mask;
  }

  ValueId sink(const RegionPlan& plan) {
    const auto term = plan.sink_term();
    if (!term && plan.has_sink()) return known_sink(plan);
    if (!term) return {};
    const ValueId x = operand(plan, plan.terms[*term].uses[0], {plan.canonical.heads()});
    return build_.cast(x, dtype_of(plan));
  }

  ValueId known_sink(const RegionPlan& plan) {
    const Sizes sizes(*plan.factors, plan.canonical);
    const Type type{dtype_of(plan), {sizes.product(plan.canonical.heads())}};
    return build_.constant(Tensor::filled(type, plan.meaning.known_sink));
  }

  // That the draws of dropout depend on.
  ValueId step(const RegionPlan& plan) {
    if (!plan.dropout) return {};
    const ValueId numbers = plan.terms[*plan.drop_term()].drop->numbers;
    const ValueId step = facts_.graph().producer(numbers)->input(0);
    return step ? make(step) : ValueId();
  }

  // One id for all segments: each takes the bits below those before it.
  void append_segments(const RegionPlan& plan, std::vector<ValueId>& operands) {
    ValueId query;
    ValueId key;
    const auto append = [&](ValueId& ids, ValueId one, int bits) {
      one = build_.cast(one, DataType::kInt64);
      if (ids) {
        const auto number = [&](double value) { return build_.scalar(DataType::kInt64, value); };
        one = build_.binary("Add", one, number(std::ldexp(1, bits - 1)));
        one = build_.binary("Add", build_.binary("Mul", ids, number(std::ldexp(1, bits))), one);
      }
      ids = one;
    };
    for (const Literal& literal : plan.visibility.segments) {
      const int bits = segment_bits(plan.cutout.graph, literal);
      append(query, vector_operand(plan, literal.value, plan.canonical.queries), bits);
      append(key, vector_operand(plan, literal.key_segment, plan.canonical.keys), bits);
    }
    operands.push_back(query);
    operands.push_back(key);
  }

  // --- The operators.

  static Attributes attributes_of(const RegionPlan& plan) {
    Attributes attributes = {{"scale", static_cast<float>(plan.meaning.scale)}};
    if (plan.meaning.softcap != 0) {
      attributes.set("softcap", static_cast<float>(plan.meaning.softcap));
    }
    if (plan.verified.dead_rows != DeadRows::kNone) {
      attributes.set("dead_rows", std::string(name_of(plan.verified.dead_rows)));
      attributes.set("dead_row_gradient", int64_t{plan.verified.dead_row_gradient});
    }
    if (plan.dropout) reference::set_attention_dropout(attributes, *plan.dropout);
    return attributes;
  }

  // What multiplies the weights of a row multiplies its output, and the output's gradient.
  ValueId times_factors(const RegionPlan& plan, ValueId x) {
    const CanonicalFactors& c = plan.canonical;
    for (size_t t = 0; t < plan.terms.size(); ++t) {
      if (plan.meaning.terms[t].kind != TermKind::kFactor) continue;
      const ValueId factor =
          operand(plan, plan.terms[t].uses[0], {c.batch, c.heads(), c.queries, {}});
      if (!plan.terms[t].is_bool()) {
        x = build_.binary("Mul", x, build_.cast(factor, build_.dtype(x)));
        continue;
      }
      const ValueId zero = build_.scalar(build_.dtype(x), 0);
      const bool masks = plan.meaning.terms[t].masking_value;
      x = masks ? build_.where(factor, zero, x) : build_.where(factor, x, zero);
    }
    return x;
  }

  void emit_forward(Emitted& emitted) {
    if (emitted.has_forward) return;
    emitted.has_forward = true;
    emit_operands(emitted);
    const RegionPlan& plan = *emitted.plan;
    std::vector<ValueId> operands = {emitted.query, emitted.key, emitted.value};
    operands.insert(operands.end(), emitted.operands.begin(), emitted.operands.end());
    Shape shape = build_.shape(emitted.query);
    shape.back() = build_.shape(emitted.value).back();
    Shape rows = shape;
    rows.pop_back();
    const ValueId result = plan.cutout.result_of.at(ResultRole::kOutput);
    const std::string name = facts_.graph().name_of(result);
    const DataType dtype = build_.dtype(emitted.query);
    const DataType statistics =
        dtype == DataType::kFloat64 ? DataType::kFloat64 : DataType::kFloat32;
    const auto results = build_.node(
        "Attention", operands, {Type{dtype, shape}, Type{statistics, rows}, Type{statistics, rows}},
        attributes_of(plan), std::string(ir::kAutospDomain),
        {name + "_attention", name + "_row_max", name + "_row_sum"});
    emitted.output = results[0];
    emitted.row_max = results[1];
    emitted.row_sum = results[2];
    finish_result(emitted, ResultRole::kOutput, times_factors(plan, emitted.output));
  }

  void emit_backward(Emitted& emitted) {
    if (emitted.has_backward) return;
    emitted.has_backward = true;
    emit_forward(emitted);
    const RegionPlan& plan = *emitted.plan;
    const ValueId gradient = times_factors(
        plan, role_operand(plan, OperandRole::kOutputGradient, output_groups(plan.canonical)));
    std::vector<ValueId> operands = {gradient,       emitted.query,   emitted.key,    emitted.value,
                                     emitted.output, emitted.row_max, emitted.row_sum};
    operands.insert(operands.end(), emitted.operands.begin(), emitted.operands.end());
    std::vector<std::string> names;
    for (const ResultRole role :
         {ResultRole::kQueryGradient, ResultRole::kKeyGradient, ResultRole::kValueGradient}) {
      names.push_back(facts_.graph().name_of(plan.cutout.result_of.at(role)) + "_attention");
    }
    const Graph& to = build_.graph();
    std::vector<Type> types = {to.type(emitted.query), to.type(emitted.key),
                               to.type(emitted.value)};
    const bool bias_gradient = plan.cutout.result_of.contains(ResultRole::kBiasGradient);
    const bool sink_gradient = plan.cutout.result_of.contains(ResultRole::kSinkGradient);
    const auto add_result = [&](bool wanted, ValueId like, ResultRole role) {
      types.push_back(wanted ? to.type(like) : Type{});
      names.push_back(wanted ? facts_.graph().name_of(plan.cutout.result_of.at(role)) + "_attention"
                             : "");
    };
    if (bias_gradient || sink_gradient) {
      add_result(bias_gradient, emitted.operands[0], ResultRole::kBiasGradient);
    }
    if (sink_gradient) {
      constexpr size_t kSink = 6;
      add_result(true, emitted.operands[kSink], ResultRole::kSinkGradient);
    }
    auto results = build_.node("AttentionGrad", operands, types, attributes_of(plan),
                               std::string(ir::kAutospDomain), names);
    if (plan.cutout.result_of.contains(ResultRole::kScaleGradient)) {
      finish_result(emitted, ResultRole::kScaleGradient, scale_gradient(emitted, results[0]));
    }
    if (emitted.query_factor) {
      results[0] = build_.binary("Mul", results[0], emitted.query_factor);
    }
    finish_result(emitted, ResultRole::kQueryGradient, results[0]);
    finish_result(emitted, ResultRole::kKeyGradient, results[1]);
    finish_result(emitted, ResultRole::kValueGradient, results[2]);
    if (bias_gradient) {
      finish_result(emitted, ResultRole::kBiasGradient, summed_bias_gradient(plan, results[3]));
    }
    if (sink_gradient) finish_result(emitted, ResultRole::kSinkGradient, results[4]);
  }

  // Scores are scale * factor * (q . k), so what their gradients make of the factor is
  // q . (gradient of factor * q). Summed in float32 at least.
  ValueId scale_gradient(const Emitted& emitted, ValueId query_gradient) {
    const DataType dtype = build_.dtype(query_gradient);
    const DataType wide = wide_type(dtype);
    const auto widened = [&](ValueId x) { return build_.cast(x, wide); };
    ValueId product = build_.binary("Mul", widened(emitted.plain_query), widened(query_gradient));
    if (emitted.divisor) {
      const ValueId divisor = widened(emitted.divisor);
      product = build_.binary("Div", build_.unary("Neg", product),
                              build_.binary("Mul", divisor, divisor));
    }
    if (emitted.rest != 1) {
      product = build_.binary("Mul", product, build_.scalar(wide, emitted.rest));
    }
    const auto groups =
        score_groups(emitted.plan->canonical, emitted.plan->canonical.scale_gradient);
    std::vector<int64_t> axes;
    for (size_t d = 0; d < groups.size(); ++d) {
      if (groups[d].empty()) axes.push_back(static_cast<int64_t>(d));
    }
    return build_.cast(build_.reduce_sum(product, axes, true), dtype);
  }

  // Where the bias has an index that its wanted gradient lacks: all of the batch say, or one of the
  // indices that count as heads.
  ValueId summed_bias_gradient(const RegionPlan& plan, ValueId gradient) {
    const auto all = score_groups(plan.canonical);
    const auto kept = score_groups(plan.canonical, plan.canonical.bias_gradient);
    Shape apart;
    std::vector<int64_t> axes;
    Shape target;
    for (size_t d = 0; d < all.size(); ++d) {
      target.push_back(1);
      const auto add = [&](int64_t extent, bool stays) {
        if (!stays && extent != 1) axes.push_back(static_cast<int64_t>(apart.size()));
        if (stays) target.back() *= extent;
        apart.push_back(extent);
      };
      if (kept[d].empty()) {
        add(build_.shape(gradient)[d], false);
        continue;
      }
      for (const AtomId atom : all[d]) {
        add(plan.factors->size(atom), std::ranges::find(kept[d], atom) != kept[d].end());
      }
    }
    if (axes.empty()) return gradient;
    return build_.reshape(build_.reduce_sum(build_.reshape(gradient, apart), axes, true), target);
  }

  void finish_result(const Emitted& emitted, ResultRole role, ValueId x) {
    const RegionPlan& plan = *emitted.plan;
    const ValueId original = plan.cutout.result_of.at(role);
    const double factor = plan.verified.factors.at(role);
    const Type& type = facts_.graph().type(original);
    x = arrange_back(build_, x, groups_of(plan.canonical, role),
                     plan.factors->atoms(plan.cutout.results.at(role)), type.shape, *plan.factors);
    if (factor != 1) x = build_.binary("Mul", x, build_.scalar_like(x, factor));
    x = build_.cast(x, type.dtype);
    rewriter_.map(original, x);
    done_[original.index()] = true;
  }

  const GraphFacts& facts_;
  ir::Rewriter rewriter_;
  ir::Builder& build_;
  std::vector<bool> done_;
  std::vector<Emitted> emitted_;
  std::map<ValueId, std::pair<size_t, ResultRole>> fused_;
  std::unordered_set<NodeId> inside_;
  std::map<std::pair<SharedIntegers, int64_t>, ValueId> constants_;
};

}  // namespace

Graph replace_regions(const GraphFacts& facts, const std::vector<const RegionPlan*>& plans) {
  return Replacer(facts, plans).replace();
}

}  // namespace autosp::transforms::fusion

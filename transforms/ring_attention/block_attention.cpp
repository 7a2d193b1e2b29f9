#include "transforms/ring_attention/block_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "ir/operator_traits.h"
#include "transforms/sixteen_bit.h"
#include "transforms/spmd/localize.h"

namespace autosp::transforms {

using ir::DataType;

namespace {

// The lowest finite number of a type.
double lowest_of(DataType dtype) {
  switch (dtype) {
    case DataType::kFloat16:
      return -65504;
    case DataType::kBFloat16:
      return static_cast<double>(ir::bfloat16_to_float(0xFF7F));
    case DataType::kFloat64:
      return std::numeric_limits<double>::lowest();
    default:
      return static_cast<double>(std::numeric_limits<float>::lowest());
  }
}

bool is_finite(const ir::Tensor& tensor) {
  for (int64_t k = 0; k < tensor.num_elements(); ++k) {
    if (!std::isfinite(tensor.value_as_double(k))) return false;
  }
  return true;
}

}  // namespace

BlockAttention::BlockAttention(const SpmdProgram& program, const Compute& compute, const Ring& ring,
                               int64_t rank, const std::vector<ValueId>& operands,
                               std::string suffix, ir::Builder& build)
    : program_(program),
      compute_(compute),
      ring_(ring),
      schedule_(ring.schedule()),
      node_(program.graph().node(compute.node)),
      at_(*shard::attention_operands(node_)),
      rank_(rank),
      member_(ring.member_of(rank)),
      operands_(operands),
      suffix_(std::move(suffix)),
      build_(build),
      sums_(node_.outputs.size()) {
  // merged() reads them together, and so does the gradient.
  has_joint_statistics_ =
      node_.op == "Attention" && ir::only_gradients_read_statistics(program.graph(), node_);
  if (ring.has_unseen_rows()) unseen_.emplace(node_, operands, schedule_.keys().extent(), build);
}

RingBlock BlockAttention::attend(size_t step, const RingBlock& block) {
  if (node_.op == "AttentionGrad") return attend_backward(step, block);
  attend_forward(step, block);
  return {};
}

void BlockAttention::attend_forward(size_t step, const RingBlock& block) {
  const ir::Type query = build_.graph().type(operands_[at_.query]);
  ir::Type output = query;
  output.shape[3] = build_.shape(block.value)[3];
  ir::Type statistic{wide_type(query.dtype), {query.shape.begin(), query.shape.end() - 1}};
  const auto results = emit(step, block, {output, statistic, statistic});
  const Partial partial{results[0], results[1], results[2]};
  partial_ = partial_ ? merged(*partial_, partial) : partial;
}

RingBlock BlockAttention::attend_backward(size_t step, const RingBlock& block) {
  std::vector<ir::Type> types(node_.outputs.size());
  const auto want = [&](size_t k, ValueId like) {
    if (k < types.size() && compute_.results[k]) types[k] = build_.graph().type(like);
  };
  want(0, operands_[at_.query]);
  want(1, block.key);
  want(2, block.value);
  // A sink joins every row once: with the block that every member attends to.
  if (step == 0 && types.size() > 4) want(4, operands_[at_.sink]);
  const auto results = emit(step, block, types);
  if (results[0]) sums_[0] = added(sums_[0], results[0]);
  if (results.size() > 4 && results[4]) sums_[4] = results[4];
  return {results[1], results[2]};
}

void BlockAttention::add_home(const RingBlock& gradients) {
  if (gradients.key) sums_[1] = added(sums_[1], gradients.key);
  if (gradients.value) sums_[2] = added(sums_[2], gradients.value);
}

std::vector<ValueId> BlockAttention::emit(size_t step, const RingBlock& block,
                                          const std::vector<ir::Type>& types) {
  ir::Attributes attributes = node_.attributes;
  // Rows without a visible key in this block have one in another, or add nothing to any.
  attributes.set("dead_rows", std::string("zero"));
  attributes.erase("dead_row_gradient");
  if (has_joint_statistics_) attributes.set("joint_statistics", int64_t{1});
  if (auto dropout = local_dropout(program_, compute_, rank_)) {
    const int64_t own = schedule_.keys().of(member_).front().begin;
    const int64_t first = schedule_.block(member_, step).front().begin;
    dropout->offset += (first - own) * dropout->strides[4];
    reference::set_attention_dropout(attributes, *dropout);
  }
  const std::string at_block = step == 0 ? "" : fmt::format("@block{}", step);
  std::vector<std::string> names;
  for (size_t k = 0; k < types.size(); ++k) {
    const bool named = node_.output(k).valid();
    names.push_back(named ? name_of(k) + at_block + "@part" : "");
  }
  const NodeId id =
      build_.graph().add_node(node_.op, operands_of(step, block), types, std::move(attributes),
                              node_.domain, std::move(names), node_.name + suffix_ + at_block);
  build_.graph().set_origin(id, node_.origin.empty() ? node_.name : node_.origin);
  return build_.graph().node(id).outputs;
}

std::vector<ValueId> BlockAttention::operands_of(size_t step, const RingBlock& block) {
  const Positions& keys = schedule_.block(member_, step);
  std::vector<ValueId> result = operands_;
  result[at_.key] = block.key;
  result[at_.value] = block.value;
  const auto replace = [&](size_t k, const auto& make) {
    if (k < result.size() && result[k]) result[k] = make(result[k]);
  };
  replace(at_.bias, [&](ValueId bias) {
    return build_.shape(bias)[3] == 1 ? bias : finite(bias, along_keys(bias, 3, keys));
  });
  replace(at_.begin, [&](ValueId begin) { return interval_bound(begin, keys, false); });
  replace(at_.end, [&](ValueId end) { return interval_bound(end, keys, true); });
  replace(at_.key_mask, [&](ValueId mask) { return along_keys(mask, 1, keys); });
  replace(at_.key_segment, [&](ValueId segment) { return along_keys(segment, 1, keys); });
  if (step > 0 && at_.sink < result.size()) result[at_.sink] = ValueId();
  while (!result.back()) result.pop_back();
  return result;
}

// Intervals count keys of the whole sequence; here, those of the block. No bound at all where it
// hides none of them.
ValueId BlockAttention::interval_bound(ValueId bound, const Positions& keys, bool is_end) {
  ir::Graph& graph = build_.graph();
  if (!graph.is_constant(bound)) return run_time_bound(bound, keys);
  std::vector<int64_t> values = *graph.constant_ints(bound);
  for (int64_t& value : values) value = count_below(keys, value);
  const int64_t nothing_hidden = is_end ? count(keys) : 0;
  if (std::ranges::all_of(values, [&](int64_t value) { return value == nothing_hidden; }))
    return {};
  const ir::Shape shape = build_.shape(bound);
  return build_.constant(ir::Tensor::int64s(std::move(values)).reshaped(shape));
}

// Of one interval, a difference, which may lie outside of the block; of several, what count_below
// says.
ValueId BlockAttention::run_time_bound(ValueId bound, const Positions& keys) {
  const auto number = [&](int64_t value) {
    return build_.scalar(DataType::kInt64, static_cast<double>(value));
  };
  if (keys.size() == 1) return build_.binary("Sub", bound, number(keys[0].begin));
  std::vector<ValueId> terms;
  for (const shard::Interval& interval : keys) {
    const ValueId inside = build_.binary("Min", build_.binary("Max", bound, number(interval.begin)),
                                         number(interval.end));
    terms.push_back(build_.binary("Sub", inside, number(interval.begin)));
  }
  ValueId total = terms[0];
  for (size_t k = 1; k < terms.size(); ++k) total = build_.binary("Add", total, terms[k]);
  return total;
}

ValueId BlockAttention::along_keys(ValueId x, int64_t axis, const Positions& keys) {
  std::vector<ValueId> parts;
  for (const shard::Interval& interval : keys)
    parts.push_back(build_.slice(x, axis, interval.begin, interval.end));
  return build_.concat(std::move(parts), axis);
}

// A bias of -inf hides a key from a row. Where it hides a whole block, the row's maximum there
// would be -inf, and the difference of two such maxima is no number.
ValueId BlockAttention::finite(ValueId bias, ValueId of_block) {
  const ir::Graph& graph = build_.graph();
  if (graph.is_constant(bias) && is_finite(graph.constant(bias))) return of_block;
  return build_.binary("Max", of_block,
                       build_.scalar_like(of_block, lowest_of(build_.dtype(of_block))));
}

// The rule of online softmax: both sums are brought to the larger maximum, and the outputs, which
// are divided by their own sums, weigh as much as these.
BlockAttention::Partial BlockAttention::merged(const Partial& a, const Partial& b) {
  const ValueId max = build_.binary("Max", a.max, b.max);
  const auto share = [&](const Partial& part) {
    return build_.binary("Mul", part.sum, build_.unary("Exp", build_.binary("Sub", part.max, max)));
  };
  const ValueId share_a = share(a);
  const ValueId share_b = share(b);
  const ValueId sum = build_.binary("Add", share_a, share_b);
  // A sum is 0 in a row that has seen no key yet, and at least about 1 in any other.
  const ValueId divisor = build_.binary("Max", sum, build_.scalar_like(sum, 1e-30));
  const auto weighed = [&](const Partial& part, ValueId part_share) {
    const ValueId weight = build_.unsqueeze(build_.binary("Div", part_share, divisor), {3});
    return build_.binary("Mul", widen(build_, part.output), weight);
  };
  const ValueId output = build_.binary("Add", weighed(a, share_a), weighed(b, share_b));
  return {output, max, sum};
}

ValueId BlockAttention::added(ValueId sum, ValueId term) {
  const ValueId wide = widen(build_, term);
  return sum ? build_.binary("Add", sum, wide) : wide;
}

std::string BlockAttention::name_of(size_t k) const {
  return program_.graph().name_of(node_.outputs[k]) + suffix_;
}

// In the type of the operator's result, and with its name, unless it is still to be returned.
ValueId BlockAttention::result(size_t k, ValueId wide) {
  if (!wide) return {};
  const DataType dtype = program_.graph().type(node_.outputs[k]).dtype;
  if (ring_.result_positions(k)) return build_.cast(wide, dtype);
  if (build_.dtype(wide) != dtype) return build_.cast(wide, dtype, name_of(k));
  return build_.identity(wide, name_of(k));
}

std::vector<ValueId> BlockAttention::unseen_terms() {
  return unseen_ ? unseen_->terms() : std::vector<ValueId>();
}

std::vector<ValueId> BlockAttention::finish(const std::vector<ValueId>& unseen) {
  std::vector<ValueId> results(node_.outputs.size());
  const auto set = [&](size_t k, ValueId wide) {
    if (k < results.size() && compute_.results[k]) results[k] = result(k, wide);
  };
  if (node_.op == "AttentionGrad") {
    if (unseen_) add_unseen(unseen_->gradients(unseen));
    for (size_t k = 0; k < results.size(); ++k) set(k, sums_[k]);
    return results;
  }
  if (unseen_) partial_->output = unseen_->output(partial_->output, partial_->sum, unseen);
  set(0, partial_->output);
  set(1, partial_->max);
  set(2, partial_->sum);
  return results;
}

void BlockAttention::add_unseen(const UnseenRows::Gradients& gradients) {
  const auto add = [&](ValueId& sum, ValueId term) {
    if (sum && term) sum = build_.binary("Add", sum, term);
  };
  add(sums_[0], gradients.query);
  add(sums_[1], gradients.key);
  add(sums_[2], gradients.value);
}

}  // namespace autosp::transforms

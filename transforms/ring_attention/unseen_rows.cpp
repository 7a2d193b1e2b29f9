#include "transforms/ring_attention/unseen_rows.h"

#include "transforms/sixteen_bit.h"

namespace autosp::transforms {

UnseenRows::UnseenRows(const ir::Node& node, const std::vector<ValueId>& operands, int64_t keys,
                       ir::Builder& build)
    : node_(node),
      operands_(operands),
      keys_(static_cast<double>(keys)),
      build_(build),
      at_(*shard::attention_operands(node)),
      is_gradient_(node.op == "AttentionGrad"),
      scores_have_gradient_(is_gradient_ && node.attributes.get_int("dead_row_gradient", 0) != 0) {}

ValueId UnseenRows::wide(size_t operand) { return widen(build_, operands_[operand]); }

// [batch, query heads, queries, n] -> [batch, KV heads, heads of a KV head * queries, n]
ValueId UnseenRows::grouped(ValueId x) {
  const ir::Shape shape = build_.shape(x);
  const int64_t kv_heads = build_.shape(operands_[at_.key])[1];
  return build_.reshape(x, {shape[0], kv_heads, shape[1] / kv_heads * shape[2], shape[3]});
}

// A row that sees a key has at least about 1 for its sum.
ValueId UnseenRows::is_unseen(ValueId sum) {
  const ValueId rows = grouped(build_.unsqueeze(sum, {3}));
  return build_.binary("Less", rows, build_.scalar_like(rows, 0.5));
}

ValueId UnseenRows::total(ValueId x) { return build_.reduce_sum(x, {2}, true); }

// The sum over rows of the products of their entries.
ValueId UnseenRows::outer(ValueId a, ValueId b) {
  return build_.matmul(build_.transpose(a, {0, 1, 3, 2}), b);
}

ValueId UnseenRows::times(ValueId x, double factor) {
  return build_.binary("Mul", x, build_.scalar_like(x, factor));
}

void UnseenRows::find_rows() {
  const ValueId gradient = wide(0);
  const ValueId unseen = build_.cast(is_unseen(operands_[6]), build_.dtype(gradient));
  output_gradient_ = build_.binary("Mul", grouped(gradient), unseen);
  if (!scores_have_gradient_) return;
  query_ = build_.binary("Mul", grouped(wide(at_.query)), unseen);
  delta_ = build_.reduce_sum(build_.binary("Mul", output_gradient_, grouped(wide(4))), {3}, true);
}

std::vector<ValueId> UnseenRows::terms() {
  if (!is_gradient_) return {total(wide(at_.value))};
  find_rows();
  if (!scores_have_gradient_) return {total(output_gradient_)};
  const ValueId key = wide(at_.key);
  return {total(output_gradient_), outer(wide(at_.value), key), total(key),
          outer(output_gradient_, query_), outer(delta_, query_)};
}

ValueId UnseenRows::output(ValueId output, ValueId sum, const std::vector<ValueId>& sums) {
  const ValueId rows = grouped(widen(build_, output));
  const ValueId whole = build_.where(is_unseen(sum), times(sums[0], 1 / keys_), rows);
  return build_.reshape(whole, build_.shape(output));
}

UnseenRows::Gradients UnseenRows::gradients(const std::vector<ValueId>& sums) {
  Gradients result;
  result.value = times(sums[0], 1 / keys_);
  if (!scores_have_gradient_) return result;
  const double scale = static_cast<double>(node_.attributes.get_float("scale", 1)) / keys_;
  const ValueId query = build_.binary("Sub", build_.matmul(output_gradient_, sums[1]),
                                      build_.binary("Mul", delta_, sums[2]));
  result.query = build_.reshape(times(query, scale), build_.shape(operands_[at_.query]));
  result.key = times(build_.binary("Sub", build_.matmul(wide(at_.value), sums[3]), sums[4]), scale);
  return result;
}

}  // namespace autosp::transforms

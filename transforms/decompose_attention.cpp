// Query heads of one KV head are rows of one matrix, [batch, KV heads, group * queries, width], in
// products, so that keys and values are never repeated; everything else is
// [batch, query heads, queries, keys]. 16-bit operands are computed with as float32.
#include "transforms/decompose_attention.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "ir/rewriter.h"
#include "reference/attention_problem.h"
#include "transforms/decompose_draws.h"
#include "transforms/sixteen_bit.h"

namespace autosp::transforms {

using ir::Builder;
using ir::DataType;
using ir::Graph;
using ir::Node;
using ir::Shape;

namespace {

bool is_attention(const Node& node) {
  return node.domain == ir::kAutospDomain && (node.op == "Attention" || node.op == "AttentionGrad");
}

class Decomposition {
 public:
  // `operands` stand for the node's inputs; `first` is the query among them, `optional` the bias.
  Decomposition(Builder& build, const Node& node, const std::vector<ValueId>& operands,
                size_t first, size_t optional)
      : build_(build),
        node_(node),
        operands_(operands),
        optional_(optional),
        type_(build.dtype(operands[first])),
        wide_(wide_type(type_)),
        query_(widened(operands[first])),
        key_(widened(operands[first + 1])),
        value_(widened(operands[first + 2])) {
    heads_ = build.shape(query_)[1];
    queries_ = build.shape(query_)[2];
    keys_ = build.shape(key_)[2];
    dead_rows_ = node.attributes.get_string("dead_rows", "none");
    find_scores();
    find_visible();
    find_kept(build.shape(query_)[0], build.shape(key_)[1]);
  }

  // Output, row maximum and row sum.
  std::vector<ValueId> forward() {
    ValueId masked = scores_;
    if (visible_) masked = build_.where(visible_, scores_, lowest());
    ValueId max = build_.reduce("ReduceMax", masked, {3}, true);
    if (sink()) max = build_.node("Max", {max, sink()}, build_.graph().type(max));
    const ValueId e = exponentials(max);
    ValueId sum = build_.reduce_sum(e, {3}, true);
    if (sink()) {
      sum = build_.binary("Add", sum, build_.unary("Exp", build_.binary("Sub", sink(), max)));
    }
    const ValueId output = rows(build_.matmul(grouped(dropped(weights(e, sum))), value_));
    return {narrowed(output), statistic(max), statistic(sum)};
  }

  // Gradients of query, key and value, then, where asked for, of bias and sink.
  std::vector<ValueId> gradient() {
    const ValueId output_gradient = widened(operands_[0]);
    const ValueId max = saved(operands_[5]);
    const ValueId sum = saved(operands_[6]);
    const ValueId p = weights(exponentials(max), sum);
    const ValueId delta =
        build_.reduce_sum(build_.binary("Mul", output_gradient, widened(operands_[4])), {3}, true);
    const ValueId dp = dropped(
        rows(build_.matmul(grouped(output_gradient), build_.transpose(value_, {0, 1, 3, 2}))));
    ValueId ds = build_.binary("Mul", p, build_.binary("Sub", dp, delta));
    if (dead_ && node_.attributes.get_int("dead_row_gradient", 0) == 0) {
      ds = build_.where(dead_, build_.scalar(wide_, 0), ds);
    }
    std::vector<ValueId> results(3);
    if (node_.output(3)) results.push_back(bias_gradient(ds));
    if (node_.output(4)) {
      results.resize(4);
      results.push_back(sink_gradient(max, sum, delta));
    }
    ds = grouped(through_softcap(ds));
    results[0] = narrowed(rows(build_.matmul(ds, key_)));
    results[1] = narrowed(build_.matmul(build_.transpose(ds, {0, 1, 3, 2}), grouped(query_)));
    results[2] = narrowed(build_.matmul(build_.transpose(grouped(dropped(p)), {0, 1, 3, 2}),
                                        grouped(output_gradient)));
    return results;
  }

 private:
  enum Optional : size_t {
    kBias,
    kBegin,
    kEnd,
    kKeyMask,
    kQuerySegment,
    kKeySegment,
    kSink,
    kStep
  };

  ValueId optional(Optional k) const {
    return optional_ + k < operands_.size() ? operands_[optional_ + k] : ValueId();
  }
  ValueId widened(ValueId x) { return build_.cast(x, wide_); }
  ValueId narrowed(ValueId x) { return build_.cast(x, type_); }
  ValueId lowest() {
    return build_.scalar(wide_, static_cast<double>(std::numeric_limits<float>::lowest()));
  }

  // [batch, query heads, queries, n] <-> [batch, KV heads, group * queries, n]
  ValueId grouped(ValueId x) {
    const Shape& shape = build_.shape(x);
    const int64_t kv_heads = build_.shape(key_)[1];
    return build_.reshape(x, {shape[0], kv_heads, heads_ / kv_heads * queries_, shape[3]});
  }
  ValueId rows(ValueId x) {
    const Shape& shape = build_.shape(x);
    return build_.reshape(x, {shape[0], heads_, queries_, shape[3]});
  }

  // [batch, query heads, queries] <-> [batch, query heads, queries, 1]
  ValueId statistic(ValueId x) { return build_.squeeze(x, {3}); }
  ValueId saved(ValueId x) { return build_.unsqueeze(x, {3}); }

  ValueId sink() {
    if (!optional(kSink)) return {};
    return build_.reshape(widened(optional(kSink)), {1, heads_, 1, 1});
  }

  void find_scores() {
    const auto number = [&](const char* name) {
      return static_cast<double>(node_.attributes.get_float(name, 0));
    };
    scale_ = build_.scalar(wide_, number("scale"));
    const ValueId product =
        rows(build_.matmul(grouped(query_), build_.transpose(key_, {0, 1, 3, 2})));
    scores_ = build_.binary("Mul", product, scale_);
    if (number("softcap") != 0) {
      const ValueId cap = build_.scalar(wide_, number("softcap"));
      tanh_ = build_.unary("Tanh", build_.binary("Div", scores_, cap));
      scores_ = build_.binary("Mul", tanh_, cap);
    }
    if (optional(kBias)) scores_ = build_.binary("Add", scores_, widened(optional(kBias)));
  }

  // A mask of [batch, extent] along queries (axis 2) or keys (axis 3) of the scores.
  ValueId along(ValueId mask, int64_t axis) {
    return build_.unsqueeze(mask,
                            axis == 2 ? std::vector<int64_t>{1, 3} : std::vector<int64_t>{1, 2});
  }

  void require(ValueId condition) {
    visible_ = visible_ ? build_.binary("And", visible_, condition) : condition;
  }

  void find_visible() {
    std::vector<int64_t> iota(static_cast<size_t>(keys_));
    std::iota(iota.begin(), iota.end(), 0);
    const ValueId key = build_.constant(ir::Tensor::int64s(iota).reshaped({1, 1, 1, keys_}));
    if (const ValueId begin = optional(kBegin)) {
      require(build_.binary("GreaterOrEqual", key, along(begin, 2)));
    }
    if (const ValueId end = optional(kEnd)) require(build_.binary("Less", key, along(end, 2)));
    if (const ValueId mask = optional(kKeyMask)) require(along(mask, 3));
    if (const ValueId segment = optional(kQuerySegment)) {
      require(build_.binary("Equal", along(segment, 2), along(optional(kKeySegment), 3)));
    }
    if (!visible_ || optional(kSink)) return;
    const ValueId seen = build_.reduce("ReduceMax", build_.cast(visible_, wide_), {3}, true);
    dead_ = build_.binary("Less", seen, build_.scalar(wide_, 0.5));
    if (dead_rows_ == "unmasked") visible_ = build_.binary("Or", visible_, dead_);
  }

  // What dropout multiplies weights by.
  void find_kept(int64_t batch, int64_t kv_heads) {
    dropout_ = reference::attention_dropout(node_.attributes);
    if (!dropout_) return;
    const Shape places = {batch, kv_heads, heads_ / kv_heads, queries_, keys_};
    ValueId number =
        build_.constant(ir::Tensor::from_values<int64_t>({}, std::vector{dropout_->offset}));
    for (size_t d = 0; d < places.size(); ++d) {
      std::vector<int64_t> along(static_cast<size_t>(places[d]));
      for (size_t i = 0; i < along.size(); ++i) {
        along[i] = static_cast<int64_t>(i) * dropout_->strides[d];
      }
      Shape shape(places.size(), 1);
      shape[d] = places[d];
      number =
          build_.binary("Add", number, build_.constant(ir::Tensor::int64s(along).reshaped(shape)));
    }
    const ValueId draw =
        draw_numbers(build_, build_.reshape(number, {batch, heads_, queries_, keys_}),
                     dropout_->key, optional(kStep));
    const auto bound = [&](const char* op, float edge) {
      return build_.binary(op, draw, build_.scalar(DataType::kFloat32, edge));
    };
    const ValueId stays = build_.binary("And", bound("GreaterOrEqual", dropout_->from),
                                        bound("Less", dropout_->below));
    kept_ = build_.where(stays, build_.scalar(wide_, dropout_->scale), build_.scalar(wide_, 0));
  }

  // Weights, or their gradients, after dropout.
  ValueId dropped(ValueId x) { return kept_ ? build_.binary("Mul", x, kept_) : x; }

  // exp(score - max), 0 where masked.
  ValueId exponentials(ValueId max) {
    const ValueId e = build_.unary("Exp", build_.binary("Sub", scores_, max));
    return visible_ ? build_.where(visible_, e, build_.scalar(wide_, 0)) : e;
  }

  ValueId weights(ValueId e, ValueId sum) {
    if (!dead_ || dead_rows_ == "unmasked") return build_.binary("Div", e, sum);
    const ValueId divisor = build_.where(dead_, build_.scalar(wide_, 1), sum);
    const ValueId p = build_.binary("Div", e, divisor);
    if (dead_rows_ == "uniform") {
      return build_.where(dead_, build_.scalar(wide_, 1.0 / static_cast<double>(keys_)), p);
    }
    if (dead_rows_ != "nan") return p;
    return build_.where(dead_, build_.scalar(wide_, std::numeric_limits<double>::quiet_NaN()), p);
  }

  ValueId through_softcap(ValueId ds) {
    const ValueId scaled = build_.binary("Mul", ds, scale_);
    if (!tanh_) return scaled;
    const ValueId slope =
        build_.binary("Sub", build_.scalar(wide_, 1), build_.binary("Mul", tanh_, tanh_));
    return build_.binary("Mul", scaled, slope);
  }

  ValueId bias_gradient(ValueId ds) {
    const Shape& shape = build_.shape(optional(kBias));
    std::vector<int64_t> axes;
    for (size_t k = 0; k < shape.size(); ++k) {
      if (shape[k] != build_.shape(ds)[k]) axes.push_back(static_cast<int64_t>(k));
    }
    return narrowed(build_.reduce_sum(ds, axes, true));
  }

  ValueId sink_gradient(ValueId max, ValueId sum, ValueId delta) {
    const ValueId e = build_.unary("Exp", build_.binary("Sub", sink(), max));
    const ValueId p = build_.binary("Div", e, sum);
    const ValueId total = build_.reduce_sum(build_.binary("Mul", p, delta), {0, 2, 3}, false);
    return narrowed(build_.unary("Neg", total));
  }

  Builder& build_;
  const Node& node_;
  const std::vector<ValueId>& operands_;
  size_t optional_;
  DataType type_;  // of operands and results
  DataType wide_;  // of arithmetic
  ValueId query_;
  ValueId key_;
  ValueId value_;
  int64_t heads_ = 0;  // of the query
  int64_t queries_ = 0;
  int64_t keys_ = 0;
  std::string dead_rows_;
  ValueId scale_;
  ValueId scores_;
  ValueId tanh_;     // of score / softcap; invalid without one
  ValueId visible_;  // invalid: everything is
  ValueId dead_;     // [batch, 1, queries, 1]; invalid: no row can be
  std::optional<reference::AttentionDropout> dropout_;
  ValueId kept_;  // like the scores; invalid: nothing is dropped
};

// One value per result of the node; those that are not present may be left out.
std::vector<ValueId> decompose(Builder& build, const Node& node,
                               const std::vector<ValueId>& operands) {
  if (node.op == "Attention") return Decomposition(build, node, operands, 0, 3).forward();
  return Decomposition(build, node, operands, 1, 7).gradient();
}

}  // namespace

Graph decompose_attention(const Graph& graph) {
  if (std::ranges::none_of(graph.nodes(), is_attention)) return graph;
  return rewrite_nodes(graph, [](ir::Rewriter& rewriter, const Node& node) {
    if (!is_attention(node)) return false;
    const auto results = decompose(rewriter.build(), node, rewriter.mapped(node.inputs));
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (node.outputs[k]) rewriter.map(node.outputs[k], results[k]);
    }
    return true;
  });
}

std::optional<Graph> attention_body(const Graph& graph, const Node& node) {
  if (!is_attention(node)) return std::nullopt;
  Graph body;
  body.opset = graph.opset;
  std::vector<ValueId> operands;
  for (size_t k = 0; k < node.inputs.size(); ++k) {
    operands.push_back(node.inputs[k]
                           ? body.add_input(fmt::format("x{}", k), graph.type(node.inputs[k]))
                           : ValueId());
  }
  Builder build(body);
  const auto results = decompose(build, node, operands);
  for (size_t k = 0; k < node.outputs.size(); ++k) {
    if (node.outputs[k]) body.add_output(fmt::format("y{}", k), results[k]);
  }
  return ir::without_dead_nodes(body);
}

}  // namespace autosp::transforms

// Cross-entropy as sums of numerators over counts.
//
//   loss = ReduceSum(Where(valid, -log p[label] · w[label], 0)) / ReduceSum(valid or w[label])
//
// A mean over tokens that are spread over ranks is not the mean of the ranks' means: the sums and
// the counts must be added up before the division, and written this way the planner sees two plain
// reductions. Invalid tokens are selected away, not multiplied by zero, so that a rank without a
// valid token adds 0 instead of NaN. The count is summed in integers, which are exact in every
// float type's stead, and converted once. Losses of 16-bit scores are summed in float32.
#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/sixteen_bit.h"

namespace autosp::transforms {

using ir::Builder;
using ir::DataType;
using ir::Graph;
using ir::Node;
using ir::Rewriter;

namespace {

std::vector<int64_t> all_axes(const Builder& build, ValueId x) {
  std::vector<int64_t> axes;
  for (size_t k = 0; k < build.rank(x); ++k) axes.push_back(static_cast<int64_t>(k));
  return axes;
}

// scores: log probabilities [N, C, D...]; labels: [N, D...]; weights: [C] or absent.
ValueId negative_log_likelihood(Builder& build, const Node& node, ValueId scores, ValueId labels,
                                ValueId weights, const std::string& name) {
  const DataType narrow = build.dtype(scores);
  const DataType wide = wide_type(narrow);
  const ValueId zero = build.scalar(wide, 0);
  const bool ignores = node.attributes.has("ignore_index");
  ValueId valid;
  ValueId safe = labels;
  if (ignores) {
    const int64_t ignored = node.attributes.get_int("ignore_index", -100);
    const ValueId index =
        build.constant(ir::Tensor::scalar(build.dtype(labels), static_cast<double>(ignored)));
    valid = build.unary("Not", build.binary("Equal", labels, index));
    safe = build.where(valid, labels, build.scalar_like(labels, 0));
  }
  const auto selected = [&](ValueId x) { return ignores ? build.where(valid, x, zero) : x; };

  const ValueId picked =
      build.squeeze(build.gather_elements(scores, build.unsqueeze(safe, {1}), 1), {1});
  ValueId losses = build.unary("Neg", build.cast(picked, wide));
  ValueId token_weights;
  if (weights) {
    token_weights = selected(build.cast(build.gather(weights, safe, 0), wide));
    losses = build.binary("Mul", losses, token_weights);
  }
  losses = selected(losses);

  const std::string reduction = node.attributes.get_string("reduction", "mean");
  const auto rounded = [&](ValueId x) { return build.cast(x, narrow, name); };
  const std::string wide_name = name_before_rounding(narrow, name);
  if (reduction == "none") {
    return wide == narrow ? build.identity(losses, name) : rounded(losses);
  }
  const std::vector<int64_t> axes = all_axes(build, losses);
  if (reduction == "sum") return rounded(build.reduce_sum(losses, axes, false, wide_name));
  const ValueId numerator = build.reduce_sum(losses, axes, false);
  ValueId count;
  if (weights) {
    count = build.reduce_sum(token_weights, axes, false);
  } else if (ignores) {
    count = build.cast(build.reduce_sum(build.cast(valid, DataType::kInt64), axes, false), wide);
  } else {
    count = build.scalar(wide, static_cast<double>(ir::num_elements(build.shape(losses))));
  }
  return rounded(build.binary("Div", numerator, count, wide_name));
}

}  // namespace

Graph decompose_losses(const Graph& graph) {
  return rewrite_nodes(graph, [&](Rewriter& rewriter, const Node& node) {
    const bool cross_entropy = node.is("SoftmaxCrossEntropyLoss");
    if (!cross_entropy && !node.is("NegativeLogLikelihoodLoss")) return false;
    Builder& build = rewriter.build();
    ValueId scores = rewriter.mapped(node.input(0));
    if (cross_entropy) {
      const ValueId log_probabilities = node.output(1);
      scores = build.softmax("LogSoftmax", scores, 1,
                             log_probabilities ? graph.name_of(log_probabilities) : "");
      rewriter.map(log_probabilities, scores);
    }
    rewriter.map(
        node.output(0),
        negative_log_likelihood(build, node, scores, rewriter.mapped(node.input(1)),
                                rewriter.mapped(node.input(2)), graph.name_of(node.output(0))));
    return true;
  });
}

}  // namespace autosp::transforms

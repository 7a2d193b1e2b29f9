// Means and composite reductions as ReduceSum and elementwise operators.
//
// A mean divides by the extent it sees; on a shard that is the wrong number. As ReduceSum(x) / n
// with n a constant, the sum may be partial on each rank and the division rides on it. The same
// goes for the norms, which hide a sum under a square root, and for batch normalization, whose
// statistics are over all tokens. 16-bit tensors are reduced in float32.
#include <algorithm>

#include "ir/rewriter.h"
#include "transforms/canonicalize/canonicalize.h"
#include "transforms/sixteen_bit.h"

namespace autosp::transforms {

using ir::Builder;
using ir::Graph;
using ir::Node;
using ir::Rewriter;

namespace {

// The axes a reduction reduces; nullopt when they are not known.
std::optional<std::vector<int64_t>> reduced_axes(const Graph& graph, const Node& node) {
  std::vector<int64_t> axes;
  if (node.input(1)) {
    const auto given = graph.constant_ints(node.input(1));
    if (!given) return std::nullopt;
    axes = *given;
  }
  if (axes.empty() && node.attributes.get_int("noop_with_empty_axes", 0) == 0) {
    for (size_t k = 0; k < graph.shape(node.input(0)).size(); ++k) {
      axes.push_back(static_cast<int64_t>(k));
    }
  }
  return axes;
}

// log(sum(exp(x))), shifted by the maximum so that exp does not overflow. An infinite maximum
// shifts by nothing: inf - inf is NaN.
ValueId log_sum_exp(Builder& build, ValueId x, const std::vector<int64_t>& axes, bool keepdims,
                    const std::string& name) {
  const ValueId largest = build.reduce("ReduceMax", x, axes, true);
  const ValueId shift =
      build.where(build.unary("IsInf", largest), build.scalar_like(x, 0), largest);
  const ValueId sum =
      build.reduce_sum(build.unary("Exp", build.binary("Sub", x, shift)), axes, keepdims);
  const ValueId log = build.unary("Log", sum);
  return build.binary("Add", log, build.reshape(shift, build.shape(log)), name);
}

bool decompose_reduction(Rewriter& rewriter, const Node& node) {
  const Graph& graph = rewriter.from();
  const bool mean = node.op == "ReduceMean";
  if (!mean && node.op != "ReduceL1" && node.op != "ReduceL2" && node.op != "ReduceSumSquare" &&
      node.op != "ReduceLogSum" && node.op != "ReduceLogSumExp") {
    return false;
  }
  const auto axes = reduced_axes(graph, node);
  if (!axes || !is_floating(graph.type(node.input(0)).dtype)) return false;
  Builder& build = rewriter.build();
  const ir::DataType dtype = graph.type(node.input(0)).dtype;
  const ValueId x = widen(build, rewriter.mapped(node.input(0)));
  const bool keepdims = node.attributes.get_int("keepdims", 1) != 0;
  const std::string& result_name = graph.name_of(node.output(0));
  const std::string name = name_before_rounding(dtype, result_name);
  const auto sum = [&](ValueId of, const std::string& named = "") {
    return build.reduce_sum(of, *axes, keepdims, named);
  };
  ValueId result;
  if (mean) {
    const int64_t count = graph.type(node.input(0)).num_elements() /
                          std::max<int64_t>(1, graph.type(node.output(0)).num_elements());
    result = build.binary("Div", sum(x), build.scalar_like(x, static_cast<double>(count)), name);
  } else if (node.op == "ReduceL1") {
    result = sum(build.unary("Abs", x), name);
  } else if (node.op == "ReduceL2") {
    result = build.unary("Sqrt", sum(build.binary("Mul", x, x)), name);
  } else if (node.op == "ReduceSumSquare") {
    result = sum(build.binary("Mul", x, x), name);
  } else if (node.op == "ReduceLogSum") {
    result = build.unary("Log", sum(x), name);
  } else {
    result = log_sum_exp(build, x, *axes, keepdims, name);
  }
  rewriter.map(node.output(0), build.cast(result, dtype, result_name));
  return true;
}

// y = (x - mean) / sqrt(variance + epsilon) * scale + bias, by channel (axis 1), of
// BatchNormalization(x, scale, bias, running mean, running variance). In training the statistics
// are those of x over all other axes, and the running ones move towards them.
bool decompose_batch_norm(Rewriter& rewriter, const Node& node) {
  const Graph& graph = rewriter.from();
  Builder& build = rewriter.build();
  const ir::Type& type = graph.type(node.output(0));
  const ir::Shape& shape = graph.shape(node.input(0));
  const bool one_type = std::ranges::all_of(node.inputs, [&](ValueId input) {
    return wide_type(graph.type(input).dtype) == wide_type(type.dtype);
  });
  if (shape.size() < 2 || !is_floating(type.dtype) || !one_type) return false;
  const auto wide = [&](size_t k) { return widen(build, rewriter.mapped(node.input(k))); };
  ir::Shape by_channel(shape.size(), 1);
  by_channel[1] = shape[1];
  const auto along_channels = [&](ValueId v) { return build.reshape(v, by_channel); };
  const ValueId x = wide(0);
  ValueId mean = wide(3);
  ValueId variance = wide(4);
  ValueId centred;
  if (node.attributes.get_int("training_mode", 0) != 0) {
    std::vector<int64_t> axes;
    for (size_t k = 0; k < shape.size(); ++k) {
      if (k != 1) axes.push_back(static_cast<int64_t>(k));
    }
    const double count =
        static_cast<double>(ir::num_elements(shape)) / std::max<double>(1, shape[1]);
    const auto mean_of = [&](ValueId v) {
      return build.binary("Div", build.reduce_sum(v, axes, false), build.scalar_like(v, count));
    };
    const auto momentum = static_cast<double>(node.attributes.get_float("momentum", 0.9F));
    const auto keep_running = [&](size_t k, ValueId before, ValueId now) {
      if (!node.output(k)) return;
      const ValueId kept = build.binary("Mul", before, build.scalar_like(before, momentum));
      const ValueId moved = build.binary("Mul", now, build.scalar_like(now, 1 - momentum));
      const ValueId running = build.binary("Add", kept, moved);
      rewriter.map(node.output(k), build.cast(running, graph.type(node.output(k)).dtype,
                                              graph.name_of(node.output(k))));
    };
    const ValueId own_mean = mean_of(x);
    centred = build.binary("Sub", x, along_channels(own_mean));
    const ValueId own_variance = mean_of(build.binary("Mul", centred, centred));
    keep_running(1, mean, own_mean);
    keep_running(2, variance, own_variance);
    variance = own_variance;
  } else {
    centred = build.binary("Sub", x, along_channels(mean));
  }
  const auto epsilon = static_cast<double>(node.attributes.get_float("epsilon", 1e-5F));
  const ValueId deviation =
      build.unary("Sqrt", build.binary("Add", variance, build.scalar_like(variance, epsilon)));
  const ValueId factor = build.binary("Div", wide(1), deviation);
  const ValueId scaled = build.binary("Mul", centred, along_channels(factor));
  const std::string& name = graph.name_of(node.output(0));
  const ValueId y =
      build.binary("Add", scaled, along_channels(wide(2)), name_before_rounding(type.dtype, name));
  rewriter.map(node.output(0), build.cast(y, type.dtype, name));
  return true;
}

}  // namespace

Graph decompose_means(const Graph& graph) {
  return rewrite_nodes(graph, [](Rewriter& rewriter, const Node& node) {
    if (!node.domain.empty()) return false;
    if (node.op == "BatchNormalization") return decompose_batch_norm(rewriter, node);
    if (node.op != "Mean") return decompose_reduction(rewriter, node);
    Builder& build = rewriter.build();
    const std::string& name = rewriter.from().name_of(node.output(0));
    const ir::DataType dtype = rewriter.from().type(node.output(0)).dtype;
    std::vector<ValueId> terms;
    for (ValueId input : node.inputs) terms.push_back(widen(build, rewriter.mapped(input)));
    const ValueId sum = build.sum(std::move(terms));
    const ValueId count = build.scalar_like(sum, static_cast<double>(node.inputs.size()));
    const ValueId mean = build.binary("Div", sum, count, name_before_rounding(dtype, name));
    rewriter.map(node.output(0), build.cast(mean, dtype, name));
    return true;
  });
}

}  // namespace autosp::transforms

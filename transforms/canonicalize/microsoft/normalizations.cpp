// Layer normalizations with their saved statistics, and their gradients.
//
// With x̂ = (x - mean) / σ over the normalised axes, g = dY · scale and an overline for the mean
// over those axes:  dX = (g - overline(g) - x̂ overline(g x̂)) / σ,  dScale = sum(dY x̂) and
// dBias = sum(dY) over the other axes. Without a mean (RMS normalization) the terms with it go.
#include "transforms/canonicalize/microsoft/lowering.h"
#include "transforms/sixteen_bit.h"

namespace autosp::transforms::microsoft {

using ir::Builder;

namespace {

struct Axes {
  std::vector<int64_t> leading;
  std::vector<int64_t> normalized;
  int64_t count = 1;     // elements per normalised row
  ir::Shape statistics;  // leading extents, then ones
};

Axes axes_of(const Lowering& lowering, const ir::Shape& shape) {
  const size_t first =
      ir::normalize_axis(lowering.node.attributes.get_int("axis", -1), shape.size());
  Axes axes;
  for (size_t k = 0; k < shape.size(); ++k) {
    const bool normalized = k >= first;
    (normalized ? axes.normalized : axes.leading).push_back(static_cast<int64_t>(k));
    if (normalized) axes.count *= shape[k];
    axes.statistics.push_back(normalized ? 1 : shape[k]);
  }
  return axes;
}

// x is never of a 16-bit type: its squares and their sum would not fit.
ValueId mean(Builder& build, ValueId x, const Axes& axes) {
  return build.binary("Div", build.reduce_sum(x, axes.normalized, true),
                      build.scalar_like(x, static_cast<double>(axes.count)));
}

// x · inverse · scale, with inverse = 1 / sqrt(mean(x²) + epsilon), which is saved in `stash_type`.
// The contributed operators' default epsilon differs from the standard one's.
void lower_rms_norm_of(const Lowering& lowering, ValueId input, ValueId scale, size_t inverse_at,
                       float default_epsilon) {
  Builder& build = lowering.build();
  const Axes axes = axes_of(lowering, build.shape(input));
  const auto stash = static_cast<ir::DataType>(lowering.node.attributes.get_int("stash_type", 1));
  const ValueId x = build.cast(input, wide_type(stash));
  const ValueId square = mean(build, build.binary("Mul", x, x), axes);
  const ValueId epsilon =
      build.scalar_like(x, lowering.node.attributes.get_float("epsilon", default_epsilon));
  const bool saved = lowering.wants(inverse_at);
  const ValueId root = build.unary("Sqrt", build.binary("Add", square, epsilon));
  const std::string saved_name = saved ? lowering.name(inverse_at) : std::string();
  const ValueId inverse = build.unary("Reciprocal", root, name_before_rounding(stash, saved_name));
  if (saved) lowering.result(inverse_at, build.cast(inverse, stash, saved_name));
  const ValueId normalized = build.cast(build.binary("Mul", x, inverse), build.dtype(scale));
  lowering.result(0, build.binary("Mul", normalized, scale, lowering.name(0)));
}

void lower_rms_norm(const Lowering& lowering) {
  lower_rms_norm_of(lowering, lowering.operand(0), lowering.operand(1), 1, 1e-5F);
}

// Operands: dY, X, scale, [mean,] inverse standard deviation.
void lower_norm_grad(const Lowering& lowering, bool centered) {
  Builder& build = lowering.build();
  const Axes axes = axes_of(lowering, build.shape(lowering.operand(1)));
  const auto statistic = [&](size_t k) {
    return widen(build, build.reshape(lowering.operand(k), axes.statistics));
  };
  const ValueId inverse = statistic(centered ? 4 : 3);
  const ir::DataType wide = build.dtype(inverse);
  const ValueId dy = build.cast(lowering.operand(0), wide);
  ValueId x = build.cast(lowering.operand(1), wide);
  if (centered) x = build.binary("Sub", x, statistic(3));
  const ValueId normalized = build.binary("Mul", x, inverse);

  const ValueId g = build.binary("Mul", dy, build.cast(lowering.operand(2), wide));
  const ValueId along = mean(build, build.binary("Mul", g, normalized), axes);
  ValueId dx = build.binary("Sub", g, build.binary("Mul", normalized, along));
  if (centered) dx = build.binary("Sub", dx, mean(build, g, axes));
  dx = build.binary("Mul", dx, inverse);
  const auto finish = [&](size_t k, ValueId value) {
    if (lowering.wants(k)) lowering.result(k, build.cast(value, lowering.result_type(k).dtype));
  };
  finish(0, dx);
  if (lowering.wants(1)) {
    finish(1, build.reduce_sum(build.binary("Mul", dy, normalized), axes.leading, false));
  }
  if (centered && lowering.wants(2)) finish(2, build.reduce_sum(dy, axes.leading, false));
}

// Operands: input, skip, …; `bias_at` is added too. Result 3 is the sum that is normalised.
ValueId skip_sum(const Lowering& lowering, size_t bias_at) {
  Builder& build = lowering.build();
  ValueId sum = build.binary("Add", lowering.operand(0), lowering.operand(1));
  if (lowering.has(bias_at)) sum = build.binary("Add", sum, lowering.operand(bias_at));
  if (lowering.wants(3)) lowering.result(3, sum);
  return sum;
}

void lower_skip_layer_norm(const Lowering& lowering) {
  Builder& build = lowering.build();
  const ValueId sum = skip_sum(lowering, 4);
  std::vector<ValueId> inputs = {sum, lowering.operand(2)};
  if (lowering.has(3)) inputs.push_back(lowering.operand(3));
  std::vector<ir::Type> types = {lowering.result_type(0)};
  for (size_t k = 1; k < 3; ++k) {
    types.push_back(lowering.wants(k) ? lowering.result_type(k) : ir::Type{});
  }
  const auto results = build.node(
      "LayerNormalization", std::move(inputs), std::move(types),
      {{"axis", int64_t{-1}}, {"epsilon", lowering.node.attributes.get_float("epsilon", 1e-12F)}},
      "", {lowering.name(0)});
  for (size_t k = 0; k < 3; ++k) {
    if (lowering.wants(k)) lowering.result(k, results[k]);
  }
}

// Operands: input, skip, scale, bias. Results: output, -, inverse, sum.
void lower_skip_rms_norm(const Lowering& lowering) {
  lower_rms_norm_of(lowering, skip_sum(lowering, 3), lowering.operand(2), 2, 1e-12F);
}

}  // namespace

const std::vector<LoweringRow>& normalization_lowerings() {
  static const std::vector<LoweringRow> kRows = {
      {"SimplifiedLayerNormalization", lower_rms_norm},
      {"SkipLayerNormalization", lower_skip_layer_norm},
      {"SkipSimplifiedLayerNormalization", lower_skip_rms_norm},
      {"LayerNormalizationGrad", [](const Lowering& l) { lower_norm_grad(l, true); }},
      {"SimplifiedLayerNormalizationGrad", [](const Lowering& l) { lower_norm_grad(l, false); }},
  };
  return kRows;
}

}  // namespace autosp::transforms::microsoft

// Cross-entropy with its gradient.
#include "transforms/canonicalize/microsoft/lowering.h"
#include "transforms/sixteen_bit.h"

namespace autosp::transforms::microsoft {

using ir::Builder;

namespace {

// The ignored label: an attribute, or operand `at` of the Internal forms. nullopt: none is ignored.
std::optional<int64_t> ignored_label(const Lowering& lowering, size_t at) {
  if (lowering.has(at)) return lowering.constant_ints(at)[0];
  if (lowering.node.attributes.has("ignore_index")) {
    return lowering.node.attributes.get_int("ignore_index", -100);
  }
  return std::nullopt;
}

// SoftmaxCrossEntropyLossInternal(scores, labels, weights, ignore_index) is the standard operator
// with the ignored label as an operand; decompose_losses takes it apart.
void lower_loss(const Lowering& lowering) {
  Builder& build = lowering.build();
  std::vector<ValueId> inputs = {lowering.operand(0), lowering.operand(1)};
  if (lowering.has(2)) inputs.push_back(lowering.operand(2));
  ir::Attributes attributes{
      {"reduction", lowering.node.attributes.get_string("reduction", "mean")}};
  if (const auto label = ignored_label(lowering, 3)) attributes.set("ignore_index", *label);
  const auto results = build.node(
      "SoftmaxCrossEntropyLoss", std::move(inputs),
      {lowering.result_type(0), lowering.wants(1) ? lowering.result_type(1) : ir::Type{}},
      std::move(attributes), "", {lowering.name(0), lowering.wants(1) ? lowering.name(1) : ""});
  lowering.result(0, results[0]);
  if (lowering.wants(1)) lowering.result(1, results[1]);
}

// dY w[label] (p - onehot(label)) / sum(w[label]), zero where the label is ignored.
// Operands: dY, log p [N, C, D…], labels [N, D…], weights [C], ignored label, bias. 16-bit operands
// are widened: a count of tokens does not fit, nor does one token's share of the mean.
void lower_loss_grad(const Lowering& lowering) {
  Builder& build = lowering.build();
  const ValueId log_probabilities = widen(build, lowering.operand(1));
  const ir::DataType wide = build.dtype(log_probabilities);
  const ValueId labels = lowering.operand(2);
  const ValueId zero = build.scalar_like(log_probabilities, 0);
  std::vector<int64_t> all;
  for (size_t k = 0; k < build.rank(labels); ++k) all.push_back(static_cast<int64_t>(k));

  ValueId valid;
  ValueId safe = labels;
  if (const auto ignored = ignored_label(lowering, 4)) {
    const ValueId label =
        build.constant(ir::Tensor::scalar(build.dtype(labels), static_cast<double>(*ignored)));
    valid = build.unary("Not", build.binary("Equal", labels, label));
    safe = build.where(valid, labels, build.scalar_like(labels, 0));
  }
  const auto selected = [&](ValueId x) { return valid ? build.where(valid, x, zero) : x; };

  ValueId scale = build.cast(lowering.operand(0), wide);
  const ValueId weights =
      lowering.has(3) ? selected(build.cast(build.gather(lowering.operand(3), safe, 0), wide))
                      : ValueId();
  if (lowering.node.attributes.get_string("reduction", "mean") == "mean") {
    ValueId count;
    if (weights) {
      count = build.reduce_sum(weights, all, false);
    } else if (valid) {
      count =
          build.cast(build.reduce_sum(build.cast(valid, ir::DataType::kInt64), all, false), wide);
    } else {
      count = build.scalar_like(zero, static_cast<double>(ir::num_elements(build.shape(labels))));
    }
    scale = build.binary("Div", build.reshape(scale, {}), count);
  }
  if (weights) scale = build.binary("Mul", scale, weights);
  scale = selected(scale);
  if (build.rank(scale) > 0) scale = build.unsqueeze(scale, {1});

  // classes: 0 … C-1 along axis 1.
  const ir::Shape& shape = build.shape(log_probabilities);
  ir::Shape along(shape.size(), 1);
  along[1] = shape[1];
  ir::Tensor classes(ir::Type{build.dtype(labels), along});
  for (int64_t c = 0; c < shape[1]; ++c) {
    const ir::Tensor one = ir::Tensor::scalar(build.dtype(labels), static_cast<double>(c));
    const size_t size = one.bytes().size();
    std::memcpy(classes.mutable_bytes() + static_cast<size_t>(c) * size, one.bytes().data(), size);
  }
  const ValueId hit =
      build.binary("Equal", build.unsqueeze(safe, {1}), build.constant(std::move(classes)));
  const ValueId error =
      build.binary("Sub", build.unary("Exp", log_probabilities), build.cast(hit, wide));
  ValueId gradient = build.binary("Mul", error, scale);
  if (lowering.has(5))
    gradient = build.binary("Add", gradient, build.cast(lowering.operand(5), wide));
  lowering.result(0, build.cast(gradient, lowering.result_type(0).dtype));
}

}  // namespace

const std::vector<LoweringRow>& loss_lowerings() {
  static const std::vector<LoweringRow> kRows = {
      {"SoftmaxCrossEntropyLossInternal", lower_loss},
      {"SoftmaxCrossEntropyLossGrad", lower_loss_grad},
      {"SoftmaxCrossEntropyLossInternalGrad", lower_loss_grad},
  };
  return kRows;
}

}  // namespace autosp::transforms::microsoft

// Classification losses: scores are [batch, classes, ...], labels [batch, ...].
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "reference/call.h"

namespace autosp::reference {

namespace {

struct LossShape {
  int64_t batch;
  int64_t classes;
  int64_t inner;  // labels per batch entry
};

// Reduces -weight[label] * log_probability over the labels that count. A mean divides by the sum of
// the weights of those.
template <typename T, typename LogProbability>
void reduce_loss(const Call& call, const LossShape& shape, LogProbability&& log_probability) {
  const ir::Attributes& attributes = call.node.attributes;
  const std::string reduction = attributes.get_string("reduction", "mean");
  std::optional<int64_t> ignored;
  if (attributes.has("ignore_index")) ignored = attributes.get_int("ignore_index", 0);
  const std::vector<int64_t> labels = integers(call.operands[1]);
  const T* weights = data<T>(operand(call, 2));
  double total = 0;
  double total_weight = 0;
  for (int64_t at = 0; at < shape.batch * shape.inner; ++at) {
    const int64_t label = labels[static_cast<size_t>(at)];
    double loss = 0;
    if (!ignored || label != *ignored) {
      const int64_t checked = checked_index(label, shape.classes);
      const double weight =
          weights == nullptr ? 1.0 : static_cast<double>(static_cast<Compute<T>>(weights[checked]));
      loss = -weight * log_probability(at / shape.inner, checked, at % shape.inner);
      total_weight += weight;
    }
    total += loss;
    if (reduction == "none") data<T>(call.results[0])[at] = convert<T>(loss);
  }
  if (reduction == "sum") *data<T>(call.results[0]) = convert<T>(total);
  if (reduction == "mean") *data<T>(call.results[0]) = convert<T>(total / total_weight);
}

LossShape loss_shape(const ir::Shape& scores) {
  return {scores[0], scores[1], around(scores, 1).inner};
}

void negative_log_likelihood(const Call& call) {
  const Operand& x = call.operands[0];
  const LossShape shape = loss_shape(*x.shape);
  visit(FloatTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    reduce_loss<T>(call, shape, [&](int64_t n, int64_t c, int64_t i) {
      return static_cast<double>(
          static_cast<Compute<T>>(data<T>(x)[(n * shape.classes + c) * shape.inner + i]));
    });
  });
}

// Results: the loss, and the logarithms of the probabilities.
void softmax_cross_entropy(const Call& call) {
  const Operand& x = call.operands[0];
  const LossShape shape = loss_shape(*x.shape);
  visit(FloatTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    std::vector<double> log_probability(static_cast<size_t>(size_of(x)));
    for (int64_t n = 0; n < shape.batch; ++n) {
      for (int64_t i = 0; i < shape.inner; ++i) {
        const int64_t first = n * shape.classes * shape.inner + i;
        double max = -std::numeric_limits<double>::infinity();
        for (int64_t c = 0; c < shape.classes; ++c) {
          max = std::max<double>(max, static_cast<Compute<T>>(data<T>(x)[first + c * shape.inner]));
        }
        double sum = 0;
        for (int64_t c = 0; c < shape.classes; ++c) {
          sum += std::exp(static_cast<Compute<T>>(data<T>(x)[first + c * shape.inner]) - max);
        }
        for (int64_t c = 0; c < shape.classes; ++c) {
          const int64_t at = first + c * shape.inner;
          log_probability[static_cast<size_t>(at)] =
              static_cast<Compute<T>>(data<T>(x)[at]) - max - std::log(sum);
        }
      }
    }
    reduce_loss<T>(call, shape, [&](int64_t n, int64_t c, int64_t i) {
      return log_probability[static_cast<size_t>((n * shape.classes + c) * shape.inner + i)];
    });
    if (has_result(call, 1)) {
      for (size_t i = 0; i < log_probability.size(); ++i) {
        data<T>(call.results[1])[i] = convert<T>(log_probability[i]);
      }
    }
  });
}

constexpr KernelRow kRows[] = {
    {"NegativeLogLikelihoodLoss", negative_log_likelihood},
    {"SoftmaxCrossEntropyLoss", softmax_cross_entropy},
};

}  // namespace

std::span<const KernelRow> loss_kernels() { return kRows; }

}  // namespace autosp::reference

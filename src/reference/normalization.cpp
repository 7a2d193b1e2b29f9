// Softmax and the normalizations. Sums are kept in double.
#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/call.h"

namespace autosp::reference {

namespace {

// Along one axis: y = exp(x - max) / sum, or its logarithm. A row of -infinity alone gives NaN, as
// the formula does.
template <bool kLog>
void softmax(const Call& call) {
  const Operand& x = call.operands[0];
  const size_t axis = axis_attribute(call, "axis", -1, x.shape->size());
  const auto [outer, inner] = around(*x.shape, axis);
  const int64_t extent = (*x.shape)[axis];
  visit(FloatTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    std::vector<double> row(static_cast<size_t>(extent));
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t i = 0; i < inner; ++i) {
        const T* from = data<T>(x) + o * extent * inner + i;
        T* to = data<T>(call.results[0]) + o * extent * inner + i;
        double max = -std::numeric_limits<double>::infinity();
        for (int64_t k = 0; k < extent; ++k) {
          row[static_cast<size_t>(k)] = static_cast<Compute<T>>(from[k * inner]);
          max = std::max(max, row[static_cast<size_t>(k)]);
        }
        double sum = 0;
        for (double& value : row) {
          value -= max;
          const double e = std::exp(value);
          sum += e;
          if (!kLog) value = e;
        }
        const double log_sum = std::log(sum);
        for (int64_t k = 0; k < extent; ++k) {
          const double value = row[static_cast<size_t>(k)];
          to[k * inner] = convert<T>(kLog ? value - log_sum : value / sum);
        }
      }
    }
  });
}

struct Moments {
  double mean = 0;
  double inverse_deviation = 0;  // 1 / sqrt(variance + epsilon)
};

template <typename T>
Moments moments(const T* x, int64_t count, double epsilon) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<Compute<T>>(x[i]);
  const double mean = sum / static_cast<double>(count);
  double squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double deviation = static_cast<Compute<T>>(x[i]) - mean;
    squares += deviation * deviation;
  }
  return {mean, 1 / std::sqrt(squares / static_cast<double>(count) + epsilon)};
}

// Over the axes from `axis` on. Results: y, and the saved mean and inverse deviation (their own
// element type, by stash_type).
void layer_normalization(const Call& call) {
  const Operand& x = call.operands[0];
  const ir::Shape& shape = *x.shape;
  const size_t axis = axis_attribute(call, "axis", -1, shape.size());
  const double epsilon = call.node.attributes.get_float("epsilon", 1e-5F);
  int64_t inner = 1;
  for (size_t k = axis; k < shape.size(); ++k) inner *= shape[k];
  const int64_t outer = inner == 0 ? 0 : size_of(x) / inner;
  // Scale and bias broadcast to the normalized axes.
  const ir::Shape normalized(shape.begin() + static_cast<std::ptrdiff_t>(axis), shape.end());
  const Strides scale_strides = broadcast_strides(*call.operands[1].shape, normalized);
  const Strides bias_strides = has_operand(call, 2)
                                   ? broadcast_strides(*call.operands[2].shape, normalized)
                                   : Strides(normalized.size(), 0);
  const StridedLoop<3> loop(normalized,
                            {row_major_strides(normalized), scale_strides, bias_strides});

  visit(FloatTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    const T* scale = data<T>(call.operands[1]);
    const T* bias = data<T>(operand(call, 2));
    for (int64_t o = 0; o < outer; ++o) {
      const T* from = data<T>(x) + o * inner;
      T* to = data<T>(call.results[0]) + o * inner;
      const Moments m = moments(from, inner, epsilon);
      loop.for_each([&](const auto& at) {
        double value = (static_cast<Compute<T>>(from[at[0]]) - m.mean) * m.inverse_deviation *
                       static_cast<Compute<T>>(scale[at[1]]);
        if (bias != nullptr) value += static_cast<Compute<T>>(bias[at[2]]);
        to[at[0]] = convert<T>(value);
      });
      for (size_t k = 1; k <= 2; ++k) {
        if (!has_result(call, k)) continue;
        visit(FloatTypes{}, call.results[k].dtype, [&]<typename S>(std::type_identity<S>) {
          data<S>(call.results[k])[o] = convert<S>(k == 1 ? m.mean : m.inverse_deviation);
        });
      }
    }
  });
}

// x / sqrt(mean(x^2) + epsilon) * scale, over the axes from `axis` on.
void rms_normalization(const Call& call) {
  const Operand& x = call.operands[0];
  const ir::Shape& shape = *x.shape;
  const size_t axis = axis_attribute(call, "axis", -1, shape.size());
  const double epsilon = call.node.attributes.get_float("epsilon", 1e-5F);
  const ir::Shape normalized(shape.begin() + static_cast<std::ptrdiff_t>(axis), shape.end());
  const int64_t inner = ir::num_elements(normalized);
  const int64_t outer = inner == 0 ? 0 : size_of(x) / inner;
  const StridedLoop<2> loop(normalized, {row_major_strides(normalized),
                                         broadcast_strides(*call.operands[1].shape, normalized)});
  visit(FloatTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    for (int64_t o = 0; o < outer; ++o) {
      const T* from = data<T>(x) + o * inner;
      T* to = data<T>(call.results[0]) + o * inner;
      double squares = 0;
      for (int64_t i = 0; i < inner; ++i) {
        const double value = static_cast<Compute<T>>(from[i]);
        squares += value * value;
      }
      const double inverse = 1 / std::sqrt(squares / static_cast<double>(inner) + epsilon);
      loop.for_each([&](const auto& at) {
        to[at[0]] = convert<T>(static_cast<Compute<T>>(from[at[0]]) * inverse *
                               static_cast<Compute<T>>(data<T>(call.operands[1])[at[1]]));
      });
    }
  });
}

// x is [batch, channels, ...]; each of `groups` runs of channels is normalized; scale and bias are
// per channel.
void normalize_groups(const Call& call, int64_t groups) {
  const Operand& x = call.operands[0];
  const ir::Shape& shape = *x.shape;
  const double epsilon = call.node.attributes.get_float("epsilon", 1e-5F);
  const int64_t channels = shape[1];
  const int64_t spatial = around(shape, 1).inner;
  const int64_t per_group = channels / groups;
  visit(FloatTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    for (int64_t g = 0; g < shape[0] * groups; ++g) {
      const int64_t begin = g * per_group * spatial;
      const Moments m = moments(data<T>(x) + begin, per_group * spatial, epsilon);
      for (int64_t i = 0; i < per_group * spatial; ++i) {
        const int64_t channel = g % groups * per_group + i / spatial;
        const double value = (static_cast<Compute<T>>(data<T>(x)[begin + i]) - m.mean) *
                                 m.inverse_deviation *
                                 static_cast<Compute<T>>(data<T>(call.operands[1])[channel]) +
                             static_cast<Compute<T>>(data<T>(call.operands[2])[channel]);
        data<T>(call.results[0])[begin + i] = convert<T>(value);
      }
    }
  });
}

void group_normalization(const Call& call) {
  normalize_groups(call, call.node.attributes.get_int("num_groups", 1));
}

void instance_normalization(const Call& call) {
  normalize_groups(call, (*call.operands[0].shape)[1]);
}

// x is [batch, channels, ...]; a channel is normalized by its running mean and variance, or, in
// training, by its own, towards which the running ones move: results 1 and 2.
void batch_normalization(const Call& call) {
  const Operand& x = call.operands[0];
  const ir::Shape& shape = *x.shape;
  const double epsilon = call.node.attributes.get_float("epsilon", 1e-5F);
  const double momentum = call.node.attributes.get_float("momentum", 0.9F);
  const bool training = call.node.attributes.get_int("training_mode", 0) != 0;
  const int64_t channels = shape.size() > 1 ? shape[1] : 1;
  const int64_t spatial = shape.size() > 1 ? around(shape, 1).inner : 1;
  const auto count = static_cast<double>(shape[0] * spatial);
  visit(FloatTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    const auto by_channel = [&](size_t k, int64_t channel) {
      double value = 0;
      visit(FloatTypes{}, call.operands[k].dtype, [&]<typename S>(std::type_identity<S>) {
        value = static_cast<Compute<S>>(data<S>(call.operands[k])[channel]);
      });
      return value;
    };
    for (int64_t channel = 0; channel < channels; ++channel) {
      const auto for_each = [&](const auto& visitor) {
        for (int64_t n = 0; n < shape[0]; ++n) {
          const int64_t begin = (n * channels + channel) * spatial;
          for (int64_t i = begin; i < begin + spatial; ++i) visitor(i);
        }
      };
      const auto value_at = [&](int64_t i) -> double {
        return static_cast<Compute<T>>(data<T>(x)[i]);
      };
      double mean = by_channel(3, channel);
      double variance = by_channel(4, channel);
      if (training) {
        double sum = 0;
        for_each([&](int64_t i) { sum += value_at(i); });
        const double own_mean = sum / count;
        double squares = 0;
        for_each(
            [&](int64_t i) { squares += (value_at(i) - own_mean) * (value_at(i) - own_mean); });
        const double own[] = {own_mean, squares / count};
        const double running[] = {mean, variance};
        for (size_t k = 0; k < 2; ++k) {
          if (!has_result(call, k + 1)) continue;
          visit(FloatTypes{}, call.results[k + 1].dtype, [&]<typename S>(std::type_identity<S>) {
            data<S>(call.results[k + 1])[channel] =
                convert<S>(running[k] * momentum + own[k] * (1 - momentum));
          });
        }
        mean = own[0];
        variance = own[1];
      }
      const double factor = by_channel(1, channel) / std::sqrt(variance + epsilon);
      const double bias = by_channel(2, channel);
      for_each([&](int64_t i) {
        data<T>(call.results[0])[i] = convert<T>((value_at(i) - mean) * factor + bias);
      });
    }
  });
}

constexpr KernelRow kRows[] = {
    {"Softmax", softmax<false>},
    {"LogSoftmax", softmax<true>},
    {"LayerNormalization", layer_normalization},
    {"RMSNormalization", rms_normalization},
    {"GroupNormalization", group_normalization},
    {"InstanceNormalization", instance_normalization},
    {"BatchNormalization", batch_normalization},
};

}  // namespace

std::span<const KernelRow> normalization_kernels() { return kRows; }

}  // namespace autosp::reference

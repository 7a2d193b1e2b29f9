// Softmax, layer normalization and sums of float32 along contiguous rows. Sums are kept in double,
// in a fixed number of lanes, so that the instruction set changes them little.
#include <algorithm>
#include <cmath>

#include "executor/kernels/rows.h"
#include "executor/kernels/simd.h"

namespace autosp::executor {

namespace {

AUTOSP_SIMD float row_max(const float* x, int64_t count) {
  float lanes[kLanes];
  for (float& lane : lanes) lane = -std::numeric_limits<float>::infinity();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] = x[i + k] > lanes[k] ? x[i + k] : lanes[k];
  }
  float result = -std::numeric_limits<float>::infinity();
  for (float lane : lanes) result = std::max(result, lane);
  for (; i < count; ++i) result = std::max(result, x[i]);
  return result;
}

// The sum over i of term(x[i]).
template <typename F>
AUTOSP_INLINE double sum_lanes(const float* x, int64_t count, F&& term) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] += term(x[i + k]);
  }
  double result = 0;
  for (; i < count; ++i) result += term(x[i]);
  for (double lane : lanes) result += lane;
  return result;
}

AUTOSP_SIMD double row_sum(const float* x, int64_t count) {
  return sum_lanes(x, count, [](float v) { return static_cast<double>(v); });
}

AUTOSP_SIMD double row_squares(const float* x, int64_t count, float mean) {
  return sum_lanes(x, count,
                   [mean](float v) { return static_cast<double>((v - mean) * (v - mean)); });
}

AUTOSP_SIMD void exp_minus(const float* x, float* y, int64_t count, float minus) {
  for (int64_t i = 0; i < count; ++i) y[i] = simd_exp(x[i] - minus);
}

AUTOSP_SIMD void scale(float* y, int64_t count, float by) {
  for (int64_t i = 0; i < count; ++i) y[i] *= by;
}

AUTOSP_SIMD void subtract(const float* x, float* y, int64_t count, float minus) {
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] - minus;
}

AUTOSP_SIMD void normalize(const float* x, float* y, int64_t count, float mean, float inverse,
                           const float* scales, const float* biases) {
  if (biases != nullptr) {
    for (int64_t i = 0; i < count; ++i) y[i] = (x[i] - mean) * inverse * scales[i] + biases[i];
  } else {
    for (int64_t i = 0; i < count; ++i) y[i] = (x[i] - mean) * inverse * scales[i];
  }
}

AUTOSP_SIMD void add_to(double* sums, const float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<double>(x[i]);
}

const float* floats(const reference::Operand& operand) {
  return static_cast<const float*>(operand.data);
}
float* floats(const reference::Result& result) { return static_cast<float*>(result.data); }

// Along the last axis.
template <bool kLog>
void softmax(const KernelCall& call) {
  const auto& [node, operands, results] = call.call;
  const int64_t count = operands[0].shape->back();
  const int64_t rows = count == 0 ? 0 : ir::num_elements(*operands[0].shape) / count;
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = floats(operands[0]) + r * count;
    float* y = floats(results[0]) + r * count;
    const float max = row_max(x, count);
    exp_minus(x, y, count, max);
    const double sum = row_sum(y, count);
    if (kLog) {
      // In two subtractions, as max + log(sum) would lose the digits of a large max.
      subtract(x, y, count, max);
      subtract(y, y, count, static_cast<float>(std::log(sum)));
    } else {
      scale(y, count, static_cast<float>(1 / sum));
    }
  }
}

bool along_last_axis(const ir::Graph& graph, const ir::Node& node) {
  const ir::Type& type = graph.type(node.outputs[0]);
  return type.dtype == ir::DataType::kFloat32 && type.rank() > 0 &&
         ir::normalize_axis(node.attributes.get_int("axis", -1), type.rank()) + 1 == type.rank();
}

void layer_normalization(const KernelCall& call) {
  const auto& [node, operands, results] = call.call;
  const int64_t count = operands[0].shape->back();
  const int64_t rows = count == 0 ? 0 : ir::num_elements(*operands[0].shape) / count;
  const double epsilon = node.attributes.get_float("epsilon", 1e-5F);
  const float* biases = operands.size() > 2 ? floats(operands[2]) : nullptr;
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = floats(operands[0]) + r * count;
    const auto mean = static_cast<float>(row_sum(x, count) / static_cast<double>(count));
    const double variance = row_squares(x, count, mean) / static_cast<double>(count);
    const auto inverse = static_cast<float>(1 / std::sqrt(variance + epsilon));
    normalize(x, floats(results[0]) + r * count, count, mean, inverse, floats(operands[1]), biases);
    if (results.size() > 1 && results[1]) floats(results[1])[r] = mean;
    if (results.size() > 2 && results[2]) floats(results[2])[r] = inverse;
  }
}

bool normalizes_last_axis(const ir::Graph& graph, const ir::Node& node) {
  const auto has_full_row = [&](ValueId id) {
    return !id || graph.type(id).num_elements() == graph.shape(node.inputs[0]).back();
  };
  const auto is_float = [&](ValueId id) {
    return !id || graph.type(id).dtype == ir::DataType::kFloat32;
  };
  return along_last_axis(graph, node) && has_full_row(node.input(1)) &&
         has_full_row(node.input(2)) && is_float(node.input(1)) && is_float(node.input(2)) &&
         is_float(node.output(1)) && is_float(node.output(2));
}

// The axes of a ReduceSum as (kept, reduced, kept) extents when the reduced ones are neighbours.
struct Neighbours {
  bool valid = false;
  int64_t outer = 1;
  int64_t reduced = 1;
  int64_t inner = 1;
};

Neighbours neighbours(const ir::Shape& shape, const std::vector<int64_t>& axes, bool noop) {
  Neighbours result;
  std::vector<bool> gone(shape.size(), axes.empty() && !noop);
  for (int64_t axis : axes) gone[ir::normalize_axis(axis, shape.size())] = true;
  const auto first = std::ranges::find(gone, true);
  if (first == gone.end()) return result;
  const auto last = std::find(first, gone.end(), false);
  result.valid = std::find(last, gone.end(), true) == gone.end();
  for (size_t k = 0; k < shape.size(); ++k) {
    const auto at = gone.begin() + static_cast<std::ptrdiff_t>(k);
    (at < first ? result.outer : at < last ? result.reduced : result.inner) *= shape[k];
  }
  return result;
}

Neighbours neighbours(const ir::Graph& graph, const ir::Node& node) {
  std::vector<int64_t> axes;
  if (node.input(1)) {
    const auto constant = graph.constant_ints(node.input(1));
    if (!constant) return {};
    axes = *constant;
  }
  return neighbours(graph.shape(node.inputs[0]), axes,
                    node.attributes.get_int("noop_with_empty_axes", 0) != 0);
}

bool sums_neighbours(const ir::Graph& graph, const ir::Node& node) {
  return graph.type(node.inputs[0]).dtype == ir::DataType::kFloat32 &&
         neighbours(graph, node).valid;
}

int64_t sum_scratch(const ir::Graph& graph, const ir::Node& node, int /*workers*/) {
  const Neighbours axes = neighbours(graph, node);
  return axes.inner == 1 ? 0 : axes.inner * static_cast<int64_t>(sizeof(double));
}

void reduce_sum(const KernelCall& call) {
  const auto& [node, operands, results] = call.call;
  std::vector<int64_t> given;
  if (operands.size() > 1 && operands[1]) {
    const auto* axes = static_cast<const int64_t*>(operands[1].data);
    given.assign(axes, axes + ir::num_elements(*operands[1].shape));
  }
  const Neighbours axes = neighbours(*operands[0].shape, given, false);
  const float* x = floats(operands[0]);
  float* y = floats(results[0]);
  if (axes.inner == 1) {
    for (int64_t o = 0; o < axes.outer; ++o) {
      y[o] = static_cast<float>(row_sum(x + o * axes.reduced, axes.reduced));
    }
    return;
  }
  auto* sums = reinterpret_cast<double*>(call.workspace);
  for (int64_t o = 0; o < axes.outer; ++o) {
    std::fill_n(sums, axes.inner, 0.0);
    for (int64_t r = 0; r < axes.reduced; ++r) {
      add_to(sums, x + (o * axes.reduced + r) * axes.inner, axes.inner);
    }
    std::transform(sums, sums + axes.inner, y + o * axes.inner,
                   [](double sum) { return static_cast<float>(sum); });
  }
}

constexpr KernelRow kRows[] = {
    {"", "Softmax", along_last_axis, softmax<false>},
    {"", "LogSoftmax", along_last_axis, softmax<true>},
    {"", "LayerNormalization", normalizes_last_axis, layer_normalization},
    {"", "ReduceSum", sums_neighbours, reduce_sum, sum_scratch},
};

}  // namespace

std::span<const KernelRow> reduction_rows() { return kRows; }

}  // namespace autosp::executor

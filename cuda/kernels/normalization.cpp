// Softmax and the normalizations, a block of threads per row.
#include "cuda/kernels/map.h"
#include "cuda/kernels/rows.h"
#include "cuda/kernels/tree.h"

namespace autosp::kernels {

namespace {

// Along an axis of `extent` entries, `inner` elements apart.
template <typename T, bool kLog>
struct Softmax {
  using A = Total<T>;
  using Shared = SumOfExponentials<A>;
  T* y;
  const T* x;
  int64_t extent;
  int64_t inner;
  AUTOSP_DEVICE int phases() const { return Shared::kPhases + 1; }
  AUTOSP_DEVICE void operator()(int64_t row, int lane, int phase, Shared& shared) const {
    const int64_t begin = row / inner * extent * inner + row % inner;
    const T* from = x + begin;
    if (phase < Shared::kPhases) {
      shared.step(lane, phase, extent, [&](int64_t k) { return load(from[k * inner]); });
      return;
    }
    const A sum = shared.value[0];
    const A log_sum = kLog ? log(sum) : A{0};
    for (int64_t k = lane; k < extent; k += kLanes) {
      const A shifted = load(from[k * inner]) - shared.max;
      y[begin + k * inner] = T(kLog ? shifted - log_sum : exp(shifted) / sum);
    }
  }
  AUTOSP_DEVICE static A load(T value) { return static_cast<A>(static_cast<Compute<T>>(value)); }
};

template <bool kLog>
void softmax(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const ir::Shape& shape = *x.shape;
  const size_t axis =
      ir::normalize_axis(call.call.node.attributes.get_int("axis", -1), shape.size());
  int64_t inner = 1;
  for (size_t k = axis + 1; k < shape.size(); ++k) inner *= shape[k];
  const int64_t extent = shape[axis];
  if (extent == 0) return;
  visit(FloatTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    launch_rows(Queue(call), ir::num_elements(shape) / extent,
                Softmax<T, kLog>{data<T>(call.call.results[0]), data<T>(x), extent, inner});
  });
}

// (x - mean) / sqrt(variance + epsilon) * scale + bias, or without the mean (kRms).
template <typename T, typename S, bool kRms>
struct Normalize {
  using A = Total<T>;
  struct Shared {
    A value[kLanes];
    A mean;
  };
  static constexpr int kMean = 1 + kTreePhases;
  static constexpr int kWrite = kMean + 2 + kTreePhases;
  T* y;
  S* means;               // or null
  S* inverse_deviations;  // or null
  const T* x;
  const T* scale;
  const T* bias;  // or null
  int64_t extent;
  Grid<2> grid;  // of scale and bias over a row
  A epsilon;
  AUTOSP_DEVICE int phases() const { return kWrite + 1; }
  AUTOSP_DEVICE void operator()(int64_t row, int lane, int phase, Shared& shared) const {
    const T* from = x + row * extent;
    if (phase == 0) {
      A sum = 0;
      for (int64_t k = lane; !kRms && k < extent; k += kLanes) sum += load(from[k]);
      shared.value[lane] = sum;
    } else if (phase < kMean) {
      combine_tree(shared.value, lane, phase - 1, Add());
    } else if (phase == kMean) {
      if (lane == 0) shared.mean = shared.value[0] / static_cast<A>(extent);
    } else if (phase == kMean + 1) {
      A sum = 0;
      for (int64_t k = lane; k < extent; k += kLanes) {
        const A deviation = load(from[k]) - shared.mean;
        sum += deviation * deviation;
      }
      shared.value[lane] = sum;
    } else if (phase < kWrite) {
      combine_tree(shared.value, lane, phase - kMean - 2, Add());
    } else {
      const A inverse = A{1} / sqrt(shared.value[0] / static_cast<A>(extent) + epsilon);
      for (int64_t k = lane; k < extent; k += kLanes) {
        const auto at = grid.offsets(k);
        A value = (load(from[k]) - shared.mean) * inverse * load(scale[at.at[0]]);
        if (bias != nullptr) value += load(bias[at.at[1]]);
        y[row * extent + k] = T(value);
      }
      if (lane != 0) return;
      if (means != nullptr) means[row] = S(static_cast<Compute<S>>(shared.mean));
      if (inverse_deviations != nullptr)
        inverse_deviations[row] = S(static_cast<Compute<S>>(inverse));
    }
  }
  AUTOSP_DEVICE static A load(T value) { return static_cast<A>(static_cast<Compute<T>>(value)); }
};

// Statistics are of one type, the operand's or float.
template <typename T, typename S, bool kRms>
void normalize_as(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const ir::Shape& shape = *x.shape;
  const ir::Attributes& attributes = call.call.node.attributes;
  const size_t axis = ir::normalize_axis(attributes.get_int("axis", -1), shape.size());
  const ir::Shape normalized(shape.begin() + static_cast<std::ptrdiff_t>(axis), shape.end());
  const int64_t extent = ir::num_elements(normalized);
  if (extent == 0) return;
  const reference::Operand bias = kRms ? reference::Operand{} : operand(call, 2);
  const Strides scale_strides = broadcast_strides(*call.call.operands[1].shape, normalized);
  const Strides bias_strides =
      bias ? broadcast_strides(*bias.shape, normalized) : Strides(normalized.size(), 0);
  launch_rows(Queue(call), ir::num_elements(shape) / extent,
              Normalize<T, S, kRms>{data<T>(call.call.results[0]), data<S>(result(call, 1)),
                                    data<S>(result(call, 2)), data<T>(x),
                                    data<T>(call.call.operands[1]), data<T>(bias), extent,
                                    Grid<2>(normalized, {scale_strides, bias_strides}),
                                    Total<T>(attributes.get_float("epsilon", 1e-5F))});
}

template <bool kRms>
void normalize(const executor::KernelCall& call) {
  const auto& statistics = result(call, 1) ? result(call, 1) : result(call, 2);
  const bool as_float = statistics && statistics.dtype == ir::DataType::kFloat32;
  visit(FloatTypes{}, call.call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    if (as_float) {
      normalize_as<T, float, kRms>(call);
    } else {
      normalize_as<T, T, kRms>(call);
    }
  });
}

bool statistics_fit(const ir::Graph& graph, const ir::Node& node) {
  if (!takes<FloatTypes>(graph, node)) return false;
  const ir::DataType type = graph.type(node.inputs[0]).dtype;
  for (size_t k = 1; k <= 2; ++k) {
    if (!node.output(k)) continue;
    const ir::DataType kept = graph.type(node.output(k)).dtype;
    if (kept != type && kept != ir::DataType::kFloat32) return false;
  }
  return true;
}

constexpr KernelRow kRows[] = {
    {"", "Softmax", takes<FloatTypes>, softmax<false>},
    {"", "LogSoftmax", takes<FloatTypes>, softmax<true>},
    {"", "LayerNormalization", statistics_fit, normalize<false>},
    {"", "RMSNormalization", takes<FloatTypes>, normalize<true>},
};

}  // namespace

std::span<const KernelRow> normalization_rows() { return kRows; }

}  // namespace autosp::kernels

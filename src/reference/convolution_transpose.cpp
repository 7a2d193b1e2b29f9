// Transposed convolution: the gradient of a convolution with respect to its data, as an operator.
#include "reference/window.h"

namespace autosp::reference {

namespace {

// Along each spatial axis, input i at window position p adds to result i·stride + p·dilation -
// before.
Window transposed_window(const Call& call) {
  const ir::Attributes& attributes = call.node.attributes;
  const ir::Shape& x = *call.operands[0].shape;
  const ir::Shape& w = *call.operands[1].shape;
  const ir::Shape& y = *call.results[0].shape;
  Window window = window_of(attributes, x.size() - 2);
  const std::string automatic = attributes.get_string("auto_pad", "NOTSET");
  const bool given_shape = attributes.has("output_shape");
  if (!given_shape && automatic != "SAME_UPPER" && automatic != "SAME_LOWER") return window;
  std::vector<int64_t> extra = attributes.get_ints("output_padding");
  extra.resize(window.before.size(), 0);
  for (size_t k = 0; k < window.before.size(); ++k) {
    const int64_t reach =
        (x[k + 2] - 1) * window.strides[k] + extra[k] + (w[k + 2] - 1) * window.dilations[k] + 1;
    window.pad_automatically(k, reach - y[k + 2], automatic == "SAME_UPPER");
  }
  return window;
}

// One step of an odometer over `extents`; false when it wraps around.
bool advance(std::vector<int64_t>& index, std::span<const int64_t> extents) {
  for (size_t k = index.size(); k-- > 0;) {
    if (++index[k] < extents[k]) return true;
    index[k] = 0;
  }
  return false;
}

// x [batch, channels, spatial...], w [channels, filters / groups, window...], b [filters]?.
void conv_transpose(const Call& call) {
  const ir::Shape& x = *call.operands[0].shape;
  const ir::Shape& w = *call.operands[1].shape;
  const ir::Shape& y = *call.results[0].shape;
  const Window window = transposed_window(call);
  const Strides y_strides = row_major_strides(y);
  const int64_t channels_per_group = x[1] / call.node.attributes.get_int("group", 1);
  const std::span<const int64_t> x_space(x.begin() + 2, x.end());
  const std::span<const int64_t> w_space(w.begin() + 2, w.end());

  visit(FloatTypes{}, call.results[0].dtype, [&]<typename T>(std::type_identity<T>) {
    const T* from = data<T>(call.operands[0]);
    const T* weights = data<T>(call.operands[1]);
    const T* bias = data<T>(operand(call, 2));
    std::vector<double> totals(static_cast<size_t>(size_of(call.results[0])), 0.0);
    std::vector<int64_t> at(x_space.size(), 0);
    std::vector<int64_t> position(w_space.size(), 0);
    for (int64_t plane = 0; plane < x[0] * x[1]; ++plane) {
      const int64_t n = plane / x[1];
      const int64_t c = plane % x[1];
      do {
        const double value = static_cast<Compute<T>>(*from++);
        for (int64_t m = 0; m < w[1]; ++m) {
          const int64_t filter = c / channels_per_group * w[1] + m;
          const T* weight = weights + (c * w[1] + m) * around(w, 1).inner;
          do {
            int64_t to = n * y_strides[0] + filter * y_strides[1];
            bool inside = true;
            for (size_t k = 0; k < at.size(); ++k) {
              const int64_t i =
                  at[k] * window.strides[k] + position[k] * window.dilations[k] - window.before[k];
              inside = inside && i >= 0 && i < y[k + 2];
              to += i * y_strides[k + 2];
            }
            const double product = value * static_cast<Compute<T>>(*weight++);
            if (inside) totals[static_cast<size_t>(to)] += product;
          } while (advance(position, w_space));
        }
      } while (advance(at, x_space));
    }
    T* result = data<T>(call.results[0]);
    for (size_t i = 0; i < totals.size(); ++i) {
      const int64_t filter = static_cast<int64_t>(i) / y_strides[1] % y[1];
      result[i] =
          convert<T>(totals[i] + (bias == nullptr ? 0.0 : static_cast<Compute<T>>(bias[filter])));
    }
  });
}

constexpr KernelRow kRows[] = {
    {"ConvTranspose", conv_transpose},
};

}  // namespace

std::span<const KernelRow> transposed_convolution_kernels() { return kRows; }

}  // namespace autosp::reference

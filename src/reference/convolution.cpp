// Convolution over one or more spatial axes, with groups, strides, dilations and pads.
#include "reference/window.h"

namespace autosp::reference {

namespace {

Window conv_window(const Call& call) {
  const ir::Attributes& attributes = call.node.attributes;
  const ir::Shape& x = *call.operands[0].shape;
  const ir::Shape& w = *call.operands[1].shape;
  const ir::Shape& y = *call.results[0].shape;
  Window window = window_of(attributes, x.size() - 2);
  const std::string automatic = attributes.get_string("auto_pad", "NOTSET");
  if (automatic != "SAME_UPPER" && automatic != "SAME_LOWER") return window;
  for (size_t k = 0; k < window.before.size(); ++k) {
    const int64_t reach =
        (y[k + 2] - 1) * window.strides[k] + (w[k + 2] - 1) * window.dilations[k] + 1;
    window.pad_automatically(k, reach - x[k + 2], automatic == "SAME_UPPER");
  }
  return window;
}

// Adds weight * x to the totals of one output plane for one input plane and one window position.
// `axis` is the spatial axis to walk next.
template <typename T>
struct PlaneUpdate {
  const ir::Shape& x;  // extents, with two leading axes
  const ir::Shape& y;
  const Strides& x_strides;
  const Strides& y_strides;
  const Window& window;
  const std::vector<int64_t>& position;  // in the window
  double weight;

  void add(size_t axis, const T* from, double* to) const {
    const size_t k = axis - 2;
    const int64_t begin = position[k] * window.dilations[k] - window.before[k];
    for (int64_t o = 0; o < y[axis]; ++o) {
      const int64_t i = begin + o * window.strides[k];
      if (i < 0 || i >= x[axis]) continue;
      if (axis + 1 == x.size()) {
        to[o] += weight * static_cast<Compute<T>>(from[i]);
      } else {
        add(axis + 1, from + i * x_strides[axis], to + o * y_strides[axis]);
      }
    }
  }
};

// x [batch, channels, spatial...], w [filters, channels / groups, window...], b [filters]?.
void conv(const Call& call) {
  const ir::Shape& x = *call.operands[0].shape;
  const ir::Shape& w = *call.operands[1].shape;
  const ir::Shape& y = *call.results[0].shape;
  const Window window = conv_window(call);
  const Strides x_strides = row_major_strides(x);
  const Strides y_strides = row_major_strides(y);
  const int64_t groups = call.node.attributes.get_int("group", 1);
  const int64_t filters_per_group = w[0] / groups;
  const int64_t plane = y_strides[1];
  const int64_t positions = around(w, 1).inner;

  visit(FloatTypes{}, call.results[0].dtype, [&]<typename T>(std::type_identity<T>) {
    std::vector<double> totals(static_cast<size_t>(plane));
    std::vector<int64_t> position(w.size() - 2);
    for (int64_t n = 0; n < y[0]; ++n) {
      for (int64_t f = 0; f < w[0]; ++f) {
        const T* bias = data<T>(operand(call, 2));
        std::ranges::fill(totals, bias == nullptr ? 0.0 : static_cast<Compute<T>>(bias[f]));
        for (int64_t c = 0; c < w[1]; ++c) {
          const int64_t channel = f / filters_per_group * w[1] + c;
          const T* from = data<T>(call.operands[0]) + n * x_strides[0] + channel * x_strides[1];
          const T* weights = data<T>(call.operands[1]) + (f * w[1] + c) * positions;
          std::ranges::fill(position, 0);
          for (int64_t p = 0; p < positions; ++p) {
            const double weight = static_cast<Compute<T>>(weights[p]);
            PlaneUpdate<T>{x, y, x_strides, y_strides, window, position, weight}.add(2, from,
                                                                                     totals.data());
            for (size_t k = position.size(); k > 0 && ++position[k - 1] == w[k + 1]; --k) {
              position[k - 1] = 0;
            }
          }
        }
        T* to = data<T>(call.results[0]) + n * y_strides[0] + f * plane;
        for (int64_t i = 0; i < plane; ++i) to[i] = convert<T>(totals[static_cast<size_t>(i)]);
      }
    }
  });
}

constexpr KernelRow kRows[] = {
    {"Conv", conv},
};

}  // namespace

std::span<const KernelRow> convolution_kernels() { return kRows; }

}  // namespace autosp::reference

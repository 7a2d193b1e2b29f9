// Pooling over one or more spatial axes.
#include <limits>

#include "reference/window.h"

namespace autosp::reference {

namespace {

Window pooling_window(const Call& call, const std::vector<int64_t>& kernel) {
  const ir::Attributes& attributes = call.node.attributes;
  const ir::Shape& x = *call.operands[0].shape;
  const ir::Shape& y = *call.results[0].shape;
  Window window = window_of(attributes, kernel.size());
  const std::string automatic = attributes.get_string("auto_pad", "NOTSET");
  if (automatic != "SAME_UPPER" && automatic != "SAME_LOWER") return window;
  for (size_t k = 0; k < kernel.size(); ++k) {
    const int64_t reach =
        (y[k + 2] - 1) * window.strides[k] + (kernel[k] - 1) * window.dilations[k] + 1;
    window.pad_automatically(k, reach - x[k + 2], automatic == "SAME_UPPER");
  }
  return window;
}

// Calls visitor(index in the plane of x) for what the window at `at` in the plane of y covers.
template <typename Visitor>
void for_each_in_window(const ir::Shape& x, const Strides& x_strides, const Window& window,
                        const std::vector<int64_t>& kernel, const std::vector<int64_t>& at,
                        size_t axis, int64_t index, const Visitor& visitor) {
  if (axis == kernel.size()) {
    visitor(index);
    return;
  }
  for (int64_t p = 0; p < kernel[axis]; ++p) {
    const int64_t i =
        at[axis] * window.strides[axis] + p * window.dilations[axis] - window.before[axis];
    if (i < 0 || i >= x[axis + 2]) continue;
    for_each_in_window(x, x_strides, window, kernel, at, axis + 1, index + i * x_strides[axis + 2],
                       visitor);
  }
}

// Elements of a window that count in a mean: its positions, or those of them that are x; padding
// counts with count_include_pad, what ceil_mode adds behind it never does.
int64_t counted(const ir::Shape& x, const Window& window, const std::vector<int64_t>& after,
                const std::vector<int64_t>& kernel, const std::vector<int64_t>& at,
                bool with_padding) {
  int64_t count = 1;
  for (size_t k = 0; k < kernel.size(); ++k) {
    int64_t along = 0;
    for (int64_t p = 0; p < kernel[k]; ++p) {
      const int64_t i = at[k] * window.strides[k] + p * window.dilations[k] - window.before[k];
      const bool is_x = i >= 0 && i < x[k + 2];
      along += is_x || (with_padding && i < x[k + 2] + after[k]) ? 1 : 0;
    }
    count *= along;
  }
  return count;
}

// What a kernel does with one window: plane of x, its results' index, and where it lies.
template <typename Visitor>
void for_each_window(const ir::Shape& y, const Visitor& visitor) {
  const int64_t planes = y[0] * y[1];
  std::vector<int64_t> at(y.size() - 2, 0);
  int64_t result = 0;
  for (int64_t plane = 0; plane < planes; ++plane) {
    const int64_t positions = around(y, 1).inner;
    std::ranges::fill(at, 0);
    for (int64_t i = 0; i < positions; ++i) {
      visitor(plane, result++, at);
      for (size_t k = at.size(); k > 0 && ++at[k - 1] == y[k + 1]; --k) at[k - 1] = 0;
    }
  }
}

// The index of an element where planes are stored with their first spatial axis fastest.
int64_t by_columns(const ir::Shape& x, const Strides& strides, int64_t index) {
  const int64_t plane = index / strides[1] * strides[1];
  int64_t result = plane;
  int64_t stride = 1;
  for (size_t k = 2; k < x.size(); ++k) {
    result += index % strides[k - 1] / strides[k] * stride;
    stride *= x[k];
  }
  return result;
}

void max_pool(const Call& call) {
  const ir::Shape& x = *call.operands[0].shape;
  const std::vector<int64_t> kernel = call.node.attributes.get_ints("kernel_shape");
  const Window window = pooling_window(call, kernel);
  const Strides strides = row_major_strides(x);
  const int64_t plane_size = around(x, 1).inner;
  const bool columns = call.node.attributes.get_int("storage_order", 0) != 0;
  visit(NumericTypes{}, call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    const T* from = data<T>(call.operands[0]);
    for_each_window(*call.results[0].shape, [&](int64_t plane, int64_t result,
                                                const std::vector<int64_t>& at) {
      int64_t largest = -1;
      for_each_in_window(x, strides, window, kernel, at, 0, plane * plane_size, [&](int64_t i) {
        if (largest < 0 ||
            static_cast<Compute<T>>(from[i]) > static_cast<Compute<T>>(from[largest]))
          largest = i;
      });
      if (largest < 0) throw Error("a window of MaxPool holds padding alone");
      data<T>(call.results[0])[result] = from[largest];
      if (!has_result(call, 1)) return;
      data<int64_t>(call.results[1])[result] = columns ? by_columns(x, strides, largest) : largest;
    });
  });
}

void average_pool(const Call& call) {
  const ir::Attributes& attributes = call.node.attributes;
  const ir::Shape& x = *call.operands[0].shape;
  const std::vector<int64_t> kernel = attributes.get_ints("kernel_shape");
  const Window window = pooling_window(call, kernel);
  const Strides strides = row_major_strides(x);
  const int64_t plane_size = around(x, 1).inner;
  const bool with_padding = attributes.get_int("count_include_pad", 0) != 0;
  std::vector<int64_t> after(kernel.size(), 0);
  const std::vector<int64_t> pads = attributes.get_ints("pads");
  const bool automatic = attributes.get_string("auto_pad", "NOTSET").starts_with("SAME");
  for (size_t k = 0; k < kernel.size(); ++k) {
    if (!pads.empty()) after[k] = pads[kernel.size() + k];
    const int64_t reach = ((*call.results[0].shape)[k + 2] - 1) * window.strides[k] +
                          (kernel[k] - 1) * window.dilations[k] + 1;
    if (automatic) after[k] = std::max<int64_t>(0, reach - x[k + 2] - window.before[k]);
  }
  visit(FloatTypes{}, call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    const T* from = data<T>(call.operands[0]);
    for_each_window(
        *call.results[0].shape, [&](int64_t plane, int64_t result, const std::vector<int64_t>& at) {
          double sum = 0;
          for_each_in_window(x, strides, window, kernel, at, 0, plane * plane_size,
                             [&](int64_t i) { sum += static_cast<Compute<T>>(from[i]); });
          const int64_t count = counted(x, window, after, kernel, at, with_padding);
          data<T>(call.results[0])[result] =
              convert<T>(count == 0 ? 0 : sum / static_cast<double>(count));
        });
  });
}

constexpr KernelRow kRows[] = {
    {"MaxPool", max_pool},
    {"AveragePool", average_pool},
};

}  // namespace

std::span<const KernelRow> pooling_kernels() { return kRows; }

}  // namespace autosp::reference

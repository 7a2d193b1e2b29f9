#include "cuda/kernels/boxes.h"

#include "cuda/kernels/copy.h"
#include "cuda/kernels/tree.h"

namespace autosp::kernels {

namespace {

int64_t offset_of(const executor::Box& box, const Strides& strides) {
  int64_t offset = 0;
  for (size_t k = 0; k < strides.size(); ++k) offset += box.begin[k] * strides[k];
  return offset;
}

// Boxes of equal element counts and other extents: both are walked row-major.
template <typename T>
struct CopyBetween {
  T* y;
  const T* x;
  Grid<1> to;
  Grid<1> from;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    y[to.offsets(i).at[0]] = x[from.offsets(i).at[0]];
  }
};

constexpr int kMostTerms = 64;
template <typename T>
struct SumTerms {
  T* out;
  const T* terms[kMostTerms];
  int count;
  Grid<1> grid;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    using A = Compute<T>;
    const int64_t at = grid.offsets(i).at[0];
    A sum = 0;
    for (int k = 0; k < count; ++k) {
      const auto term = static_cast<A>(terms[k][at]);
      sum = k == 0 ? term : sum + term;
    }
    out[i] = T(sum);
  }
};

}  // namespace

void copy_box(const Queue& queue, size_t element_size, const executor::ConstBuffer& x,
              const executor::Box& from, const executor::Buffer& y, const executor::Box& to) {
  if (to.num_elements() == 0) return;
  const Strides x_strides = row_major_strides(x.shape);
  const Strides y_strides = row_major_strides(y.shape);
  const int64_t x_begin = offset_of(from, x_strides);
  const int64_t y_begin = offset_of(to, y_strides);
  if (from.extent == to.extent) {
    copy(queue, {.shape = from.extent,
                 .element_size = element_size,
                 .to = y.data,
                 .to_strides = y_strides,
                 .to_offset = y_begin,
                 .from = x.data,
                 .from_strides = x_strides,
                 .from_offset = x_begin});
    return;
  }
  visit_width(element_size, [&]<typename T>(std::type_identity<T>) {
    launch(
        queue, to.num_elements(),
        CopyBetween<T>{static_cast<T*>(y.data) + y_begin, static_cast<const T*>(x.data) + x_begin,
                       Grid<1>(to.extent, {y_strides}), Grid<1>(from.extent, {x_strides})});
  });
}

void sum_boxes(const Queue& queue, ir::DataType dtype, std::span<const std::byte* const> terms,
               const ir::Shape& shape, const executor::Box& box, std::byte* out) {
  AUTOSP_CHECK(terms.size() <= kMostTerms, "{} ranks on devices of one process", terms.size());
  const Strides strides = row_major_strides(shape);
  const int64_t begin = offset_of(box, strides);
  const Grid<1> grid(box.extent, {strides});
  visit(NumberTypes{}, dtype, [&]<typename T>(std::type_identity<T>) {
    SumTerms<T> body{reinterpret_cast<T*>(out), {}, static_cast<int>(terms.size()), grid};
    for (size_t k = 0; k < terms.size(); ++k) {
      body.terms[k] = reinterpret_cast<const T*>(terms[k]) + begin;
    }
    launch(queue, grid.count, body);
  });
}

}  // namespace autosp::kernels

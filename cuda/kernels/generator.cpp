// Operators whose values come from attributes or a counter.
#include <cstring>

#include "cuda/kernels/map.h"
#include "cuda/kernels/rows.h"

namespace autosp::kernels {

namespace {

template <typename T>
struct Constant {
  T* y;
  T value;
  AUTOSP_DEVICE void operator()(int64_t i) const { y[i] = value; }
};

void constant_of_shape(const executor::KernelCall& call) {
  const auto& y = call.call.results[0];
  const ir::Tensor* value = call.call.node.attributes.get_tensor("value");  // absent: float zero
  visit_bits(y.dtype, [&]<typename T>(std::type_identity<T>) {
    T bits{};
    if (value != nullptr) std::memcpy(&bits, value->bytes().data(), sizeof(T));
    launch(Queue(call), ir::num_elements(*y.shape), Constant<T>{data<T>(y), bits});
  });
}

template <typename T>
struct Range {
  T* y;
  const T* start;
  const T* delta;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    using C = Compute<T>;
    y[i] = T(static_cast<C>(*start) + static_cast<C>(i) * static_cast<C>(*delta));
  }
};

void range(const executor::KernelCall& call) {
  const auto& y = call.call.results[0];
  visit(NumberTypes{}, y.dtype, [&]<typename T>(std::type_identity<T>) {
    launch(Queue(call), ir::num_elements(*y.shape),
           Range<T>{data<T>(y), data<T>(call.call.operands[0]), data<T>(call.call.operands[2])});
  });
}

constexpr KernelRow kRows[] = {
    {"", "ConstantOfShape", nullptr, constant_of_shape},
    {"", "Range", gives<NumberTypes>, range},
};

}  // namespace

std::span<const KernelRow> generator_rows() { return kRows; }

}  // namespace autosp::kernels

// Operators whose values come from attributes or a counter.
#include <cstring>

#include "cuda/kernels/draw.h"
#include "cuda/kernels/map.h"
#include "cuda/kernels/rows.h"
#include "reference/draws.h"

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

// Element i of a box: number `first + grid.offsets(i)` of a stream (reference/draws.h).
template <typename T>
struct RandomUniform {
  T* y;
  uint64_t seed;
  uint32_t stream;
  const int64_t* step;  // or null
  int64_t first;
  Grid<1> grid;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    const auto index = static_cast<uint64_t>(first + grid.offsets(i).at[0]);
    y[i] = T(draw(seed, stream, step == nullptr ? 0 : *step, index));
  }
};

void random_uniform(const executor::KernelCall& call) {
  const ir::Attributes& attributes = call.call.node.attributes;
  const auto seed = static_cast<uint64_t>(attributes.get_int("seed", 0));
  const reference::DrawnBox box = reference::drawn_box(attributes);
  const Strides whole = row_major_strides(box.whole);
  int64_t first = 0;
  for (size_t k = 0; k < whole.size(); ++k) first += box.begin[k] * whole[k];
  const auto& y = call.call.results[0];
  visit(TypeList<float, double>{}, y.dtype, [&]<typename T>(std::type_identity<T>) {
    const Grid<1> grid(box.extent, {whole});
    launch(
        Queue(call), grid.count,
        RandomUniform<T>{data<T>(y), seed, static_cast<uint32_t>(attributes.get_int("stream", 0)),
                         data<int64_t>(operand(call, 0)), first, grid});
  });
}

constexpr KernelRow kRows[] = {
    {ir::kAutospDomain, "RandomUniform", gives<TypeList<float, double>>, random_uniform},
    {"", "ConstantOfShape", nullptr, constant_of_shape},
    {"", "Range", gives<NumberTypes>, range},
};

}  // namespace

std::span<const KernelRow> generator_rows() { return kRows; }

}  // namespace autosp::kernels

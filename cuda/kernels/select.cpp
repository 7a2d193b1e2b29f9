// Elementwise operators that choose or convert: Where, Clip, Cast, Identity.
#include <limits>

#include "cuda/kernels/map.h"
#include "cuda/kernels/rows.h"

namespace autosp::kernels {

namespace {

template <typename T>
struct Where {
  T* z;
  const bool* condition;
  const T* x;
  const T* y;
  Grid<3> grid;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    const auto at = grid.offsets(i);
    z[i] = condition[at.at[0]] ? x[at.at[1]] : y[at.at[2]];
  }
};

void where(const executor::KernelCall& call) {
  const auto& operands = call.call.operands;
  const auto& z = call.call.results[0];
  const Grid<3> grid(*z.shape, {broadcast_strides(*operands[0].shape, *z.shape),
                                broadcast_strides(*operands[1].shape, *z.shape),
                                broadcast_strides(*operands[2].shape, *z.shape)});
  visit_bits(z.dtype, [&]<typename T>(std::type_identity<T>) {
    launch(Queue(call), grid.count,
           Where<T>{data<T>(z), data<bool>(operands[0]), data<T>(operands[1]), data<T>(operands[2]),
                    grid});
  });
}

// The bounds are scalars in device memory, or absent.
template <typename T>
struct Clip {
  const T* low;
  const T* high;
  AUTOSP_DEVICE T operator()(T x) const {
    using C = Compute<T>;
    auto value = static_cast<C>(x);
    if (low != nullptr && value < static_cast<C>(*low)) value = static_cast<C>(*low);
    if (high != nullptr && value > static_cast<C>(*high)) value = static_cast<C>(*high);
    return T(value);
  }
};

void clip(const executor::KernelCall& call) {
  const auto& z = call.call.results[0];
  visit(NumberTypes{}, z.dtype, [&]<typename T>(std::type_identity<T>) {
    map(Queue(call), ir::num_elements(*z.shape), data<T>(z), data<T>(call.call.operands[0]),
        Clip<T>{data<T>(operand(call, 1)), data<T>(operand(call, 2))});
  });
}

// As ONNX's Cast; floats outside an integer's range saturate.
template <typename To, typename From>
struct Convert {
  AUTOSP_DEVICE To operator()(From from) const {
    const auto value = static_cast<Compute<From>>(from);
    if constexpr (std::is_same_v<To, bool>) {
      return value != Compute<From>{0};
    } else if constexpr (kIsHalf<To>) {
      return To(static_cast<float>(value));
    } else if constexpr (std::is_integral_v<To> && kIsFloat<From>) {
      if (value != value) return 0;
      const auto wide = static_cast<double>(value);
      constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
      if (wide >= static_cast<double>(kLargest)) return static_cast<To>(kLargest);
      if (wide <= -static_cast<double>(kLargest)) return static_cast<To>(-kLargest - 1);
      return static_cast<To>(static_cast<int64_t>(wide));
    } else {
      return static_cast<To>(value);
    }
  }
};

using CastTypes = TypeList<float, double, Float16, BFloat16, int64_t, int32_t, bool>;

bool casts(const ir::Graph& graph, const ir::Node& node) {
  return takes<CastTypes>(graph, node) && gives<CastTypes>(graph, node);
}

void cast(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const auto& y = call.call.results[0];
  visit(CastTypes{}, x.dtype, [&]<typename From>(std::type_identity<From>) {
    visit(CastTypes{}, y.dtype, [&]<typename To>(std::type_identity<To>) {
      map(Queue(call), ir::num_elements(*y.shape), data<To>(y), data<From>(x), Convert<To, From>{});
    });
  });
}

constexpr auto kElementwise = reference::Aliasing::kElementwise;

constexpr KernelRow kRows[] = {
    {"", "Where", nullptr, where, nullptr, kElementwise},
    {"", "Clip", gives<NumberTypes>, clip, nullptr, kElementwise},
    {"", "Cast", casts, cast},
    {"", "CastLike", casts, cast},
};

}  // namespace

std::span<const KernelRow> select_rows() { return kRows; }

}  // namespace autosp::kernels

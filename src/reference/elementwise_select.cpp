// Elementwise operators that choose or convert: Where, Clip, Cast, Identity, Dropout at inference.
#include <algorithm>
#include <cstring>

#include "reference/call.h"

namespace autosp::reference {

namespace {

void where(const Call& call) {
  const Result& z = call.results[0];
  const Operand& c = call.operands[0];
  const Operand& x = call.operands[1];
  const Operand& y = call.operands[2];
  const StridedLoop<4> loop(
      *z.shape, {row_major_strides(*z.shape), broadcast_strides(*c.shape, *z.shape),
                 broadcast_strides(*x.shape, *z.shape), broadcast_strides(*y.shape, *z.shape)});
  const auto& step = loop.row_strides();
  visit_bits(z.dtype, [&]<typename T>(std::type_identity<T>) {
    loop.for_each_row([&](const auto& at) {
      T* out = data<T>(z) + at[0];
      const bool* condition = data<bool>(c) + at[1];
      const T* a = data<T>(x) + at[2];
      const T* b = data<T>(y) + at[3];
      for (int64_t i = 0; i < loop.row_extent(); ++i) {
        out[i] = condition[i * step[1]] ? a[i * step[2]] : b[i * step[3]];
      }
    });
  });
}

void clip(const Call& call) {
  const Result& z = call.results[0];
  visit(NumericTypes{}, z.dtype, [&]<typename T>(std::type_identity<T>) {
    const T* x = data<T>(call.operands[0]);
    const T* low = data<T>(operand(call, 1));
    const T* high = data<T>(operand(call, 2));
    const int64_t count = size_of(z);
    for (int64_t i = 0; i < count; ++i) {
      Compute<T> value = x[i];
      if (low != nullptr && value < static_cast<Compute<T>>(*low)) value = *low;
      if (high != nullptr && value > static_cast<Compute<T>>(*high)) value = *high;
      data<T>(z)[i] = static_cast<T>(value);
    }
  });
}

void cast(const Call& call) {
  const Operand& x = call.operands[0];
  const Result& y = call.results[0];
  const int64_t count = size_of(y);
  visit(AllTypes{}, x.dtype, [&]<typename From>(std::type_identity<From>) {
    visit(AllTypes{}, y.dtype, [&]<typename To>(std::type_identity<To>) {
      const From* from = data<From>(x);
      To* to = data<To>(y);
      for (int64_t i = 0; i < count; ++i) to[i] = convert<To>(from[i]);
    });
  });
}

void identity(const Call& call) {
  const Result& y = call.results[0];
  if (y.data == call.operands[0].data) return;
  std::memcpy(y.data, call.operands[0].data,
              static_cast<size_t>(size_of(y)) * ir::element_size(y.dtype));
}

constexpr KernelRow kRows[] = {
    {"Where", where, Aliasing::kElementwise},
    {"Clip", clip, Aliasing::kElementwise},
    {"Cast", cast},
    {"CastLike", cast},
    {"Identity", identity},
};

}  // namespace

std::span<const KernelRow> select_kernels() { return kRows; }

}  // namespace autosp::reference

// Elementwise operators of two or more operands, with broadcasting.
#include <algorithm>
#include <array>
#include <cmath>

#include "reference/call.h"

namespace autosp::reference {

namespace {

// Element types that large tensors have: loops over them are worth a vectorized form each.
template <typename T>
inline constexpr bool kIsCommon = std::is_same_v<T, float> || std::is_same_v<T, int64_t>;

// z = fn(x, y) over the broadcast index space; z may be x or y where their shape is z's.
template <typename X, typename Y, typename Z, typename F>
void zip(const ir::Shape& z_shape, Z* z, const ir::Shape& x_shape, const X* x,
         const ir::Shape& y_shape, const Y* y, F&& fn) {
  const StridedLoop<3> loop(z_shape,
                            {row_major_strides(z_shape), broadcast_strides(x_shape, z_shape),
                             broadcast_strides(y_shape, z_shape)});
  const int64_t count = loop.row_extent();
  const int64_t x_step = loop.row_strides()[1];
  const int64_t y_step = loop.row_strides()[2];
  loop.for_each_row([&](const auto& at) {
    Z* out = z + at[0];
    const X* a = x + at[1];
    const Y* b = y + at[2];
    if constexpr (kIsCommon<X>) {
      if (x_step == 1 && y_step == 1) {
        for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Z>(fn(a[i], b[i]));
        return;
      }
      if (x_step == 1 && y_step == 0) {
        const Y second = *b;
        for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Z>(fn(a[i], second));
        return;
      }
      if (x_step == 0 && y_step == 1) {
        const X first = *a;
        for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Z>(fn(first, b[i]));
        return;
      }
    }
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Z>(fn(a[i * x_step], b[i * y_step]));
  });
}

// --- Results in blocks, so that what is computed in between takes no more than one.

constexpr int64_t kBlock = 1024;

// Where an operand's elements for a block lie.
struct Run {
  int64_t at = 0;
  int64_t step = 0;
};

// Calls f(position in the result, runs of the operands, count) for blocks of at most kBlock
// elements, which follow each other in the result. What a block writes is read for no later one:
// the result may lie over an operand of its shape.
template <typename F>
void for_each_block(const Call& call, F&& f) {
  const ir::Shape& shape = *call.results[0].shape;
  const auto whole = [&](const Operand& x) { return *x.shape == shape; };
  const bool flat = std::ranges::all_of(
      call.operands, [&](const Operand& x) { return whole(x) || size_of(x) == 1; });
  const int64_t size = ir::num_elements(shape);
  const int64_t row = flat ? size : shape.back();
  std::vector<Strides> strides;
  for (const Operand& x : call.operands) strides.push_back(broadcast_strides(*x.shape, shape));
  std::vector<Run> runs(call.operands.size());
  for (int64_t at = 0; at < size;) {
    const int64_t count = std::min(kBlock, row - at % row);
    for (size_t k = 0; k < runs.size(); ++k) {
      const bool walked = flat && whole(call.operands[k]);
      runs[k] = flat ? Run{walked ? at : 0, walked ? 1 : 0} : Run{0, strides[k].back()};
      int64_t rest = flat ? 0 : at;
      for (size_t axis = shape.size(); rest > 0 && axis-- > 0; rest /= shape[axis]) {
        runs[k].at += rest % shape[axis] * strides[k][axis];
      }
    }
    f(at, static_cast<const std::vector<Run>&>(runs), count);
    at += count;
  }
}

void read_doubles(const Operand& x, const Run& run, int64_t count, double* to) {
  visit(NumericTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    const T* from = data<T>(x) + run.at;
    for (int64_t i = 0; i < count; ++i) {
      to[i] = static_cast<double>(static_cast<Compute<T>>(from[i * run.step]));
    }
  });
}

template <typename Z, typename Types, typename F>
void zip_call(const Call& call, Types types, F&& fn) {
  const Operand& x = call.operands[0];
  const Operand& y = call.operands[1];
  const Result& z = call.results[0];
  visit(types, x.dtype, [&]<typename T>(std::type_identity<T>) {
    using Out = std::conditional_t<std::is_void_v<Z>, T, Z>;
    zip(*z.shape, data<Out>(z), *x.shape, data<T>(x), *y.shape, data<T>(y),
        [&fn](T a, T b) { return fn(static_cast<Compute<T>>(a), static_cast<Compute<T>>(b)); });
  });
}

template <auto fn, typename Types = NumericTypes>
void binary(const Call& call) {
  zip_call<void>(call, Types{}, fn);
}
template <auto fn, typename Types = NumericTypes>
void compare(const Call& call) {
  zip_call<bool>(call, Types{}, fn);
}

template <typename T>
T divide(T x, T y) {
  if constexpr (std::is_integral_v<T>) {
    if (y == 0) throw Error("integer division by zero");
    if constexpr (std::is_signed_v<T>) {
      if (y == -1) return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(x));
    }
  }
  return static_cast<T>(x / y);
}

// fmod = 0: the sign of the divisor; fmod = 1: the sign of the dividend, as C's fmod.
template <typename T>
T modulo(T x, T y, bool fmod) {
  if constexpr (std::is_floating_point_v<T>) {
    const T remainder = std::fmod(x, y);
    return !fmod && remainder != 0 && (remainder < 0) != (y < 0) ? remainder + y : remainder;
  } else {
    if (y == 0) throw Error("integer division by zero");
    if constexpr (std::is_signed_v<T>) {
      if (y == -1) return 0;
    }
    const T remainder = static_cast<T>(x % y);
    if (!fmod && remainder != 0 && (remainder < 0) != (y < 0)) return static_cast<T>(remainder + y);
    return remainder;
  }
}

void mod(const Call& call) {
  const bool fmod = call.node.attributes.get_int("fmod", 0) != 0;
  zip_call<void>(call, NumericTypes{}, [fmod](auto x, auto y) { return modulo(x, y, fmod); });
}

template <typename T>
T power(T base, double exponent) {
  if constexpr (std::is_floating_point_v<T>) {
    if (exponent == 2) return base * base;
    return std::pow(base, static_cast<T>(exponent));
  } else {
    if (exponent < 0 || exponent != std::floor(exponent)) {
      return convert<T>(std::pow(static_cast<double>(base), exponent));
    }
    T result = 1;
    for (auto n = static_cast<uint64_t>(exponent); n != 0; n >>= 1U) {
      if ((n & 1U) != 0) result = static_cast<T>(result * base);
      base = static_cast<T>(base * base);
    }
    return result;
  }
}

// The exponent has its own element type.
void pow(const Call& call) {
  const Operand& x = call.operands[0];
  const Operand& y = call.operands[1];
  const Result& z = call.results[0];
  std::array<double, kBlock> exponents;
  visit(NumericTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    for_each_block(call, [&](int64_t at, const std::vector<Run>& runs, int64_t count) {
      const auto [x_at, x_step] = runs[0];
      const int64_t y_step = runs[1].step;
      read_doubles(y, runs[1], y_step == 0 ? 1 : count, exponents.data());
      const T* from = data<T>(x) + x_at;
      T* to = data<T>(z) + at;
      if (y_step == 0) {
        const double exponent = exponents[0];
        for (int64_t i = 0; i < count; ++i) {
          to[i] = static_cast<T>(power(static_cast<Compute<T>>(from[i * x_step]), exponent));
        }
        return;
      }
      for (int64_t i = 0; i < count; ++i) {
        to[i] = static_cast<T>(
            power(static_cast<Compute<T>>(from[i * x_step]), exponents[static_cast<size_t>(i)]));
      }
    });
  });
}

// result = fn(fn(x0, x1), x2) ...; `finish` is applied to the whole.
template <typename Types, typename F, typename G>
void fold(const Call& call, Types types, F&& fn, G&& finish) {
  const Result& z = call.results[0];
  visit(types, z.dtype, [&]<typename T>(std::type_identity<T>) {
    // 16-bit floats are rounded once, at the end.
    std::array<Compute<T>, kBlock> total;
    for_each_block(call, [&](int64_t at, const std::vector<Run>& runs, int64_t count) {
      for (size_t k = 0; k < runs.size(); ++k) {
        const T* from = data<T>(call.operands[k]) + runs[k].at;
        for (int64_t i = 0; i < count; ++i) {
          Compute<T>& sum = total[static_cast<size_t>(i)];
          const auto next = static_cast<Compute<T>>(from[i * runs[k].step]);
          sum = k == 0 ? next : static_cast<Compute<T>>(fn(sum, next));
        }
      }
      T* to = data<T>(z) + at;
      for (int64_t i = 0; i < count; ++i) {
        to[i] = static_cast<T>(finish(total[static_cast<size_t>(i)]));
      }
    });
  });
}

template <auto fn, typename Types>
void variadic(const Call& call) {
  fold(call, Types{}, fn, [](auto total) { return total; });
}

void mean(const Call& call) {
  const auto count = static_cast<float>(call.operands.size());
  fold(
      call, FloatTypes{}, [](auto x, auto y) { return x + y; },
      [count]<typename T>(T total) { return total / static_cast<T>(count); });
}

// The larger or smaller; a NaN wins, as in numpy.
template <typename T>
T larger(T x, T y) {
  return x > y || x != x ? x : y;
}
template <typename T>
T smaller(T x, T y) {
  return x < y || x != x ? x : y;
}

using enum Aliasing;

constexpr KernelRow kRows[] = {
    {"Add", binary<[](auto x, auto y) { return x + y; }>, kElementwise},
    {"Sub", binary<[](auto x, auto y) { return x - y; }>, kElementwise},
    {"Mul", binary<[](auto x, auto y) { return x * y; }>, kElementwise},
    {"Div", binary<[](auto x, auto y) { return divide(x, y); }>, kElementwise},
    {"Mod", mod, kElementwise},
    {"Pow", pow, kElementwise},
    {"Max", variadic<[](auto x, auto y) { return larger(x, y); }, NumericTypes>, kElementwise},
    {"Min", variadic<[](auto x, auto y) { return smaller(x, y); }, NumericTypes>, kElementwise},
    {"Sum", variadic<[](auto x, auto y) { return x + y; }, FloatTypes>, kElementwise},
    {"Mean", mean, kElementwise},
    {"PRelu", binary<[](auto x, auto slope) {
       return static_cast<decltype(x)>(x < decltype(x){0} ? x * slope : x);
     }>,
     kElementwise},
    {"Equal", compare<[](auto x, auto y) { return x == y; }, AllTypes>, kElementwise},
    {"Less", compare<[](auto x, auto y) { return x < y; }>, kElementwise},
    {"LessOrEqual", compare<[](auto x, auto y) { return x <= y; }>, kElementwise},
    {"Greater", compare<[](auto x, auto y) { return y < x; }>, kElementwise},
    {"GreaterOrEqual", compare<[](auto x, auto y) { return y <= x; }>, kElementwise},
    {"BitwiseAnd", binary<[](auto x, auto y) { return x & y; }, IntegerTypes>, kElementwise},
    {"BitwiseOr", binary<[](auto x, auto y) { return x | y; }, IntegerTypes>, kElementwise},
    {"BitwiseXor", binary<[](auto x, auto y) { return x ^ y; }, IntegerTypes>, kElementwise},
    {"And", compare<[](bool x, bool y) { return x && y; }, BoolType>, kElementwise},
    {"Or", compare<[](bool x, bool y) { return x || y; }, BoolType>, kElementwise},
    {"Xor", compare<[](bool x, bool y) { return x != y; }, BoolType>, kElementwise},
};

}  // namespace

std::span<const KernelRow> binary_kernels() { return kRows; }

}  // namespace autosp::reference

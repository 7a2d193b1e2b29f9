// Reductions over axes, summed in double in row-major order of the operand.
#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/call.h"

namespace autosp::reference {

namespace {

// Which axes go, and the loop over (operand, result).
struct Reduction {
  Strides result_strides;  // per axis of the operand; 0 where it is reduced
  int64_t count = 1;       // operand elements per result element

  explicit Reduction(const Call& call) {
    const ir::Shape& shape = *call.operands[0].shape;
    std::vector<bool> reduced(shape.size(), false);
    std::vector<int64_t> axes;
    if (has_operand(call, 1)) axes = integers(call.operands[1]);
    if (axes.empty() && call.node.attributes.get_int("noop_with_empty_axes", 0) == 0) {
      reduced.assign(shape.size(), true);
    }
    for (int64_t axis : axes) reduced[ir::normalize_axis(axis, shape.size())] = true;
    result_strides.assign(shape.size(), 0);
    int64_t stride = 1;
    for (size_t k = shape.size(); k-- > 0;) {
      if (reduced[k]) {
        count *= shape[k];
      } else {
        result_strides[k] = stride;
        stride *= shape[k];
      }
    }
  }

  // Calls step(total, element) for every element of x, with the result's total it belongs to.
  template <typename T, typename Total, typename F>
  void accumulate(const Operand& x, std::vector<Total>& totals, F&& step) const {
    const StridedLoop<2> loop(*x.shape, {row_major_strides(*x.shape), result_strides});
    const auto [x_step, total_step] = loop.row_strides();
    loop.for_each_row([&](const auto& at) {
      const T* from = data<T>(x) + at[0];
      Total* to = totals.data() + at[1];
      if (total_step == 0) {
        Total total = *to;
        for (int64_t i = 0; i < loop.row_extent(); ++i) {
          step(total, static_cast<Compute<T>>(from[i * x_step]));
        }
        *to = total;
      } else {
        for (int64_t i = 0; i < loop.row_extent(); ++i) {
          step(to[i * total_step], static_cast<Compute<T>>(from[i * x_step]));
        }
      }
    });
  }
};

template <typename T, typename F>
void store(const Call& call, const std::vector<Accumulator<T>>& totals, F&& finish) {
  T* y = data<T>(call.results[0]);
  for (size_t i = 0; i < totals.size(); ++i) {
    const auto value = finish(totals[i]);
    if constexpr (kIsFloat<T>) {
      y[i] = static_cast<T>(static_cast<Compute<T>>(value));
    } else {
      y[i] = static_cast<T>(value);
    }
  }
}

struct Sum {
  static constexpr int kInitial = 0;
  template <typename A, typename T>
  static void step(A& total, T x) {
    total += static_cast<A>(x);
  }
  template <typename A>
  static A finish(A total, int64_t) {
    return total;
  }
};
struct Mean : Sum {
  template <typename A>
  static A finish(A total, int64_t count) {
    return total / static_cast<A>(count);
  }
};
struct Prod : Sum {
  static constexpr int kInitial = 1;
  template <typename A, typename T>
  static void step(A& total, T x) {
    total *= static_cast<A>(x);
  }
};
struct SumSquare : Sum {
  template <typename A, typename T>
  static void step(A& total, T x) {
    total += static_cast<A>(x) * static_cast<A>(x);
  }
};
struct L1 : Sum {
  template <typename A, typename T>
  static void step(A& total, T x) {
    total += x < T{0} ? A{0} - static_cast<A>(x) : static_cast<A>(x);
  }
};
struct L2 : SumSquare {
  template <typename A>
  static double finish(A total, int64_t) {
    return std::sqrt(static_cast<double>(total));
  }
};
struct LogSum : Sum {
  template <typename A>
  static double finish(A total, int64_t) {
    return std::log(static_cast<double>(total));
  }
};

template <typename Op>
void reduce(const Call& call) {
  const Reduction reduction(call);
  visit(NumericTypes{}, call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    std::vector<Accumulator<T>> totals(static_cast<size_t>(size_of(call.results[0])), Op::kInitial);
    reduction.accumulate<T>(call.operands[0], totals,
                            [](auto& total, auto x) { Op::step(total, x); });
    store<T>(call, totals, [&](auto total) { return Op::finish(total, reduction.count); });
  });
}

// Of nothing: -infinity (or the lowest integer) for Max, the opposite for Min.
template <typename T, bool kMax>
Accumulator<T> extreme_of_nothing() {
  if constexpr (kIsFloat<T>) {
    const double infinity = std::numeric_limits<double>::infinity();
    return kMax ? -infinity : infinity;
  } else {
    return static_cast<Accumulator<T>>(kMax ? std::numeric_limits<T>::lowest()
                                            : std::numeric_limits<T>::max());
  }
}

template <bool kMax>
struct Extreme {
  template <typename A, typename T>
  static void step(A& total, T x) {
    const A value = static_cast<A>(x);
    if ((kMax ? value > total : value < total) || value != value) total = value;
  }
};

template <bool kMax>
void reduce_extreme(const Call& call) {
  const Reduction reduction(call);
  visit(AllTypes{}, call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    std::vector<Accumulator<T>> totals(static_cast<size_t>(size_of(call.results[0])),
                                       extreme_of_nothing<T, kMax>());
    reduction.accumulate<T>(call.operands[0], totals,
                            [](auto& total, auto x) { Extreme<kMax>::step(total, x); });
    store<T>(call, totals, [](auto total) { return total; });
  });
}

// max + log(sum(exp(x - max))), in two passes.
void reduce_log_sum_exp(const Call& call) {
  const Reduction reduction(call);
  visit(NumericTypes{}, call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    struct State {
      double max = -std::numeric_limits<double>::infinity();
      double sum = 0;
    };
    std::vector<State> states(static_cast<size_t>(size_of(call.results[0])));
    reduction.accumulate<T>(call.operands[0], states, [](State& state, auto x) {
      state.max = std::max(state.max, static_cast<double>(x));
    });
    reduction.accumulate<T>(call.operands[0], states, [](State& state, auto x) {
      // A row of -infinity alone sums to zero, not to NaN.
      if (!std::isinf(state.max)) state.sum += std::exp(static_cast<double>(x) - state.max);
    });
    T* y = data<T>(call.results[0]);
    for (size_t i = 0; i < states.size(); ++i) {
      const bool infinite = std::isinf(states[i].max);
      y[i] = convert<T>(infinite ? states[i].max : states[i].max + std::log(states[i].sum));
    }
  });
}

constexpr KernelRow kRows[] = {
    {"ReduceSum", reduce<Sum>},
    {"ReduceMean", reduce<Mean>},
    {"ReduceProd", reduce<Prod>},
    {"ReduceSumSquare", reduce<SumSquare>},
    {"ReduceL1", reduce<L1>},
    {"ReduceL2", reduce<L2>},
    {"ReduceLogSum", reduce<LogSum>},
    {"ReduceLogSumExp", reduce_log_sum_exp},
    {"ReduceMax", reduce_extreme<true>},
    {"ReduceMin", reduce_extreme<false>},
};

}  // namespace

std::span<const KernelRow> reduce_kernels() { return kRows; }

}  // namespace autosp::reference

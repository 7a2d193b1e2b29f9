// Operators that compare along one axis or accumulate along it: ArgMax, TopK, CumSum.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "reference/call.h"

namespace autosp::reference {

namespace {

template <bool kMax>
void arg_extreme(const Call& call) {
  const Operand& x = call.operands[0];
  const size_t axis = axis_attribute(call, "axis", 0, x.shape->size());
  const bool last = call.node.attributes.get_int("select_last_index", 0) != 0;
  const auto [outer, inner] = around(*x.shape, axis);
  const int64_t extent = (*x.shape)[axis];
  auto* y = data<int64_t>(call.results[0]);
  visit(NumericTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t i = 0; i < inner; ++i) {
        const T* from = data<T>(x) + o * extent * inner + i;
        int64_t best = 0;
        for (int64_t k = 1; k < extent; ++k) {
          const Compute<T> value = from[k * inner];
          const Compute<T> top = from[best * inner];
          if ((kMax ? value > top : value < top) || (last && value == top)) best = k;
        }
        y[o * inner + i] = best;
      }
    }
  });
}

// Results: the k largest (or smallest) along `axis` in order, and where they were; equal ones in
// order of position.
void top_k(const Call& call) {
  const Operand& x = call.operands[0];
  const size_t axis = axis_attribute(call, "axis", -1, x.shape->size());
  const bool largest = call.node.attributes.get_int("largest", 1) != 0;
  const auto [outer, inner] = around(*x.shape, axis);
  const int64_t extent = (*x.shape)[axis];
  const int64_t k = (*call.results[0].shape)[axis];
  visit(NumericTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    std::vector<int64_t> order(static_cast<size_t>(extent));
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t i = 0; i < inner; ++i) {
        const T* from = data<T>(x) + o * extent * inner + i;
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
          const Compute<T> left = from[a * inner];
          const Compute<T> right = from[b * inner];
          return largest ? left > right : left < right;
        });
        for (int64_t n = 0; n < k; ++n) {
          const int64_t at = (o * k + n) * inner + i;
          const int64_t source = order[static_cast<size_t>(n)];
          if (has_result(call, 0)) data<T>(call.results[0])[at] = from[source * inner];
          if (has_result(call, 1)) data<int64_t>(call.results[1])[at] = source;
        }
      }
    }
  });
}

void cum_sum(const Call& call) {
  const Operand& x = call.operands[0];
  const size_t axis = ir::normalize_axis(integers(call.operands[1])[0], x.shape->size());
  const bool exclusive = call.node.attributes.get_int("exclusive", 0) != 0;
  const bool reverse = call.node.attributes.get_int("reverse", 0) != 0;
  const auto [outer, inner] = around(*x.shape, axis);
  const int64_t extent = (*x.shape)[axis];
  visit(NumericTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t i = 0; i < inner; ++i) {
        Accumulator<T> total = 0;
        for (int64_t n = 0; n < extent; ++n) {
          const int64_t k = reverse ? extent - 1 - n : n;
          const int64_t at = (o * extent + k) * inner + i;
          const auto value = static_cast<Accumulator<T>>(static_cast<Compute<T>>(data<T>(x)[at]));
          if (!exclusive) total += value;
          data<T>(call.results[0])[at] = convert<T>(total);
          if (exclusive) total += value;
        }
      }
    }
  });
}

constexpr KernelRow kRows[] = {
    {"ArgMax", arg_extreme<true>},
    {"ArgMin", arg_extreme<false>},
    {"TopK", top_k},
    {"CumSum", cum_sum},
};

}  // namespace

std::span<const KernelRow> ordering_kernels() { return kRows; }

}  // namespace autosp::reference

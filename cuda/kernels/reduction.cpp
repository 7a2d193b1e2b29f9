// Reductions over axes.
//
// Where what is reduced lies in rows, a block takes a result's elements. Where the last axis is
// kept, that would read memory in strides: threads take columns instead, in chunks of terms whose
// sums a second pass adds. Either way the order of the terms is fixed.
#include <algorithm>
#include <limits>
#include <map>

#include "cuda/kernels/map.h"
#include "cuda/kernels/rows.h"
#include "cuda/kernels/tree.h"

namespace autosp::kernels {

namespace {

enum class Op : uint8_t { kSum, kMean, kProd, kSumSquare, kL1, kL2, kLogSum, kMax, kMin };

const std::map<std::string_view, Op>& operators() {
  static const std::map<std::string_view, Op> kOps = {
      {"ReduceSum", Op::kSum},       {"ReduceMean", Op::kMean},
      {"ReduceProd", Op::kProd},     {"ReduceSumSquare", Op::kSumSquare},
      {"ReduceL1", Op::kL1},         {"ReduceL2", Op::kL2},
      {"ReduceLogSum", Op::kLogSum}, {"ReduceMax", Op::kMax},
      {"ReduceMin", Op::kMin}};
  return kOps;
}

// A is what totals are kept in.
template <typename A>
struct Rule {
  Op op;
  A nothing;  // the total of no terms

  explicit Rule(Op which) : op(which), nothing(0) {
    if (op == Op::kProd) nothing = 1;
    if (op != Op::kMax && op != Op::kMin) return;
    using Limits = std::numeric_limits<A>;
    const A largest = Limits::has_infinity ? Limits::infinity() : Limits::max();
    const A least = Limits::has_infinity ? -Limits::infinity() : Limits::lowest();
    nothing = op == Op::kMax ? least : largest;
  }
  AUTOSP_DEVICE A term(A x) const {
    if (op == Op::kSumSquare || op == Op::kL2) return x * x;
    if (op == Op::kL1) return x < A{0} ? -x : x;
    return x;
  }
  AUTOSP_DEVICE A operator()(A total, A x) const {
    if (op == Op::kMax) return x > total || x != x ? x : total;
    if (op == Op::kMin) return x < total || x != x ? x : total;
    return op == Op::kProd ? total * x : total + x;
  }
  AUTOSP_DEVICE A finish(A total, int64_t count) const {
    if (op == Op::kMean) return total / static_cast<A>(count);
    if (op == Op::kL2) return static_cast<A>(sqrt(static_cast<double>(total)));
    if (op == Op::kLogSum) return static_cast<A>(log(static_cast<double>(total)));
    return total;
  }
};

// Where a result's terms lie: from kept.offsets(result), reduced.offsets(0 .. reduced.count).
struct Reduction {
  Grid<1> kept;
  Grid<1> reduced;

  Reduction(const ir::Shape& shape, const std::vector<bool>& goes) {
    const Strides own = row_major_strides(shape);
    ir::Shape shapes[2];
    Strides strides[2];
    for (size_t k = 0; k < shape.size(); ++k) {
      shapes[goes[k] ? 1 : 0].push_back(shape[k]);
      strides[goes[k] ? 1 : 0].push_back(own[k]);
    }
    kept = Grid<1>(shapes[0], {strides[0]});
    reduced = Grid<1>(shapes[1], {strides[1]});
  }

  // A result's terms follow each other in memory, and are enough to share out.
  bool is_along_rows() const {
    constexpr int64_t kLeastTerms = 32;
    return reduced.count >= kLeastTerms && reduced.stride[0][reduced.axes - 1] == 1;
  }
  // Into how many chunks a column's terms are divided, so that there is work for a whole device.
  int64_t chunks() const {
    constexpr int64_t kThreads = int64_t{1} << 17;
    constexpr int64_t kLeastTerms = 16;
    const int64_t wanted = kThreads / std::max<int64_t>(kept.count, 1);
    return std::clamp<int64_t>(std::min(wanted, reduced.count / kLeastTerms), 1, 1024);
  }
};

std::vector<bool> reduced_axes(const ir::Graph& graph, const ir::Node& node) {
  const size_t rank = graph.shape(node.inputs[0]).size();
  std::vector<int64_t> axes;
  if (node.input(1)) axes = *graph.constant_ints(node.input(1));
  if (axes.empty()) {
    return std::vector<bool>(rank, node.attributes.get_int("noop_with_empty_axes", 0) == 0);
  }
  std::vector<bool> reduced(rank, false);
  for (const int64_t axis : axes) reduced[ir::normalize_axis(axis, rank)] = true;
  return reduced;
}

Reduction reduction_of(const ir::Graph& graph, const ir::Node& node) {
  return {graph.shape(node.inputs[0]), reduced_axes(graph, node)};
}

template <typename T>
struct ReduceRow {
  using A = Total<T>;
  struct Shared {
    A value[kLanes];
  };
  T* y;
  const T* x;
  Reduction reduction;
  Rule<A> rule;
  AUTOSP_DEVICE int phases() const { return kTreePhases + 2; }
  AUTOSP_DEVICE static int last_phase() { return kTreePhases + 1; }
  AUTOSP_DEVICE void operator()(int64_t row, int lane, int phase, Shared& shared) const {
    if (phase == 0) {
      const T* from = x + reduction.kept.offsets(row).at[0];
      A total = rule.nothing;
      for (int64_t k = lane; k < reduction.reduced.count; k += kLanes) {
        total = rule(total, rule.term(static_cast<A>(static_cast<Compute<T>>(
                                from[reduction.reduced.offsets(k).at[0]]))));
      }
      shared.value[lane] = total;
    } else if (phase < last_phase()) {
      combine_tree(shared.value, lane, phase - 1, rule);
    } else if (lane == 0) {
      y[row] = T(static_cast<Compute<T>>(rule.finish(shared.value[0], reduction.reduced.count)));
    }
  }
};

// Totals of chunk c of column i, at [c][i].
template <typename T>
struct ReduceChunk {
  using A = Total<T>;
  A* totals;
  const T* x;
  Reduction reduction;
  Rule<A> rule;
  int64_t chunks;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    const int64_t chunk = i / reduction.kept.count;
    const T* from = x + reduction.kept.offsets(i % reduction.kept.count).at[0];
    const int64_t terms = reduction.reduced.count;
    A total = rule.nothing;
    for (int64_t k = terms * chunk / chunks; k < terms * (chunk + 1) / chunks; ++k) {
      total = rule(total, rule.term(static_cast<A>(
                              static_cast<Compute<T>>(from[reduction.reduced.offsets(k).at[0]]))));
    }
    totals[i] = total;
  }
};

template <typename T>
struct ReduceTotals {
  using A = Total<T>;
  T* y;
  const A* totals;
  Rule<A> rule;
  int64_t columns;
  int64_t chunks;
  int64_t terms;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    A total = rule.nothing;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      total = rule(total, totals[chunk * columns + i]);
    }
    y[i] = T(static_cast<Compute<T>>(rule.finish(total, terms)));
  }
};

// max + log(sum(exp(x - max))). Of terms that are all -infinity it is that.
template <typename T>
struct LogSumExp {
  using A = Total<T>;
  using Shared = SumOfExponentials<A>;
  T* y;
  const T* x;
  Reduction reduction;
  AUTOSP_DEVICE int phases() const { return Shared::kPhases + 1; }
  AUTOSP_DEVICE void operator()(int64_t row, int lane, int phase, Shared& s) const {
    if (phase < Shared::kPhases) {
      const T* from = x + reduction.kept.offsets(row).at[0];
      s.step(lane, phase, reduction.reduced.count, [&](int64_t k) {
        return static_cast<A>(static_cast<Compute<T>>(from[reduction.reduced.offsets(k).at[0]]));
      });
    } else if (lane == 0) {
      const bool is_infinite = fabs(s.max) == A{INFINITY};
      y[row] = T(static_cast<Compute<T>>(is_infinite ? s.max : s.max + log(s.value[0])));
    }
  }
};

bool sums_exponentials(const ir::Graph& graph, const ir::Node& node) {
  return is_known(graph, node, 1) && takes<FloatTypes>(graph, node);
}

void log_sum_exp(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const Reduction reduction = reduction_of(*call.graph, call.call.node);
  visit(FloatTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    launch_rows(Queue(call), reduction.kept.count,
                LogSumExp<T>{data<T>(call.call.results[0]), data<T>(x), reduction});
  });
}

bool axes_are_known(const ir::Graph& graph, const ir::Node& node) {
  if (!is_known(graph, node, 1) || !takes<NumberTypes>(graph, node)) return false;
  const Op op = operators().at(node.op);
  const bool divides = op == Op::kMean || op == Op::kL2 || op == Op::kLogSum;
  return !divides || takes<FloatTypes>(graph, node);
}

int64_t workspace(const ir::Graph& graph, const ir::Node& node, int /*workers*/) {
  const Reduction reduction = reduction_of(graph, node);
  if (reduction.is_along_rows()) return 0;
  return reduction.chunks() * reduction.kept.count * static_cast<int64_t>(sizeof(double));
}

void reduce(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const auto& y = call.call.results[0];
  const Reduction reduction = reduction_of(*call.graph, call.call.node);
  const Op op = operators().at(call.call.node.op);
  visit(NumberTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    using A = Total<T>;
    const Rule<A> rule(op);
    if (reduction.is_along_rows()) {
      launch_rows(Queue(call), reduction.kept.count,
                  ReduceRow<T>{data<T>(y), data<T>(x), reduction, rule});
      return;
    }
    const int64_t chunks = reduction.chunks();
    const int64_t columns = reduction.kept.count;
    auto* totals = reinterpret_cast<A*>(call.workspace);
    launch(Queue(call), chunks * columns,
           ReduceChunk<T>{totals, data<T>(x), reduction, rule, chunks});
    launch(Queue(call), columns,
           ReduceTotals<T>{data<T>(y), totals, rule, columns, chunks, reduction.reduced.count});
  });
}

}  // namespace

std::span<const KernelRow> reduction_rows() {
  static const std::vector<KernelRow> kRows = [] {
    std::vector<KernelRow> rows;
    for (const auto& [name, op] : operators()) {
      rows.push_back({"", name, axes_are_known, reduce, workspace});
    }
    rows.push_back({"", "ReduceLogSumExp", sums_exponentials, log_sum_exp});
    return rows;
  }();
  return kRows;
}

}  // namespace autosp::kernels

// Operators that compare along one axis or accumulate along it: ArgMax, ArgMin, TopK, CumSum. A
// block of threads takes a line of elements along the axis.
#include "cuda/kernels/map.h"
#include "cuda/kernels/rows.h"
#include "cuda/kernels/tree.h"

namespace autosp::kernels {

namespace {

// The lines of an array along an axis.
struct Lines {
  int64_t count = 1;
  int64_t extent = 1;
  int64_t inner = 1;  // elements from one entry of a line to the next

  Lines(const ir::Shape& shape, size_t axis) : extent(shape[axis]) {
    for (size_t k = 0; k < shape.size(); ++k) {
      if (k != axis) count *= shape[k];
      if (k > axis) inner *= shape[k];
    }
  }
  // Of entry `at` of line `line` in an array whose lines have `length` entries.
  AUTOSP_DEVICE int64_t place(int64_t line, int64_t at, int64_t length) const {
    return (line / inner * length + at) * inner + line % inner;
  }
};

// An entry of a line, or none (at < 0).
template <typename T>
struct Entry {
  Compute<T> value;
  int64_t at;
};

// Which of two entries comes first: the larger (or smaller) one, of equal ones the earlier (or
// later). What is not a number comes last; but nothing is larger or smaller than a first entry that
// is none, says ArgMax. None comes behind all.
struct Order {
  bool largest;
  bool last_of_equals;
  bool keeps_first_nan;

  template <typename E>
  AUTOSP_DEVICE bool precedes(const E& a, const E& b) const {
    if (a.at < 0 || b.at < 0) return a.at >= 0;
    const bool a_is_nan = a.value != a.value;
    const bool b_is_nan = b.value != b.value;
    if (keeps_first_nan && a_is_nan && a.at == 0) return true;
    if (keeps_first_nan && b_is_nan && b.at == 0) return false;
    if (a_is_nan != b_is_nan) return b_is_nan;
    if (!a_is_nan && a.value != b.value) return largest ? a.value > b.value : a.value < b.value;
    return last_of_equals ? a.at > b.at : a.at < b.at;
  }
  template <typename E>
  AUTOSP_DEVICE E operator()(const E& a, const E& b) const {
    return precedes(b, a) ? b : a;
  }
};

// The first `count` entries of every line in this order, one after the other: each is the first of
// those that come behind the one before.
template <typename T>
struct Select {
  static constexpr int kThreads = kLanes;
  struct Shared {
    Entry<T> first[kLanes];
    Entry<T> found;  // last
  };
  struct Registers {};

  T* values;         // or null
  int64_t* indices;  // or null
  const T* x;
  Lines lines;
  int64_t count;
  Order order;

  AUTOSP_DEVICE_ONLY void operator()(Block<Select>& block) const {
    const int64_t line = block.index();
    Shared& s = block.shared();
    for (int64_t n = 0; n < count; ++n) {
      block.each([&](int thread) { s.first[thread] = first_behind(line, n, thread, s.found); });
      for (int level = 0; level < kTreePhases; ++level) {
        block.each([&](int thread) { combine_tree(s.first, thread, level, order); });
      }
      block.each([&](int thread) {
        if (thread != 0) return;
        s.found = s.first[0];
        const int64_t to = lines.place(line, n, count);
        if (values != nullptr) values[to] = x[lines.place(line, s.found.at, lines.extent)];
        if (indices != nullptr) indices[to] = s.found.at;
      });
    }
  }

 private:
  // Of a thread's entries.
  AUTOSP_DEVICE Entry<T> first_behind(int64_t line, int64_t n, int thread,
                                      const Entry<T>& found) const {
    Entry<T> first{{}, -1};
    for (int64_t k = thread; k < lines.extent; k += kLanes) {
      const Entry<T> entry{static_cast<Compute<T>>(x[lines.place(line, k, lines.extent)]), k};
      if ((n == 0 || order.precedes(found, entry)) && order.precedes(entry, first)) first = entry;
    }
    return first;
  }
};

void arg_extreme(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const ir::Attributes& attributes = call.call.node.attributes;
  const Lines lines(*x.shape, ir::normalize_axis(attributes.get_int("axis", 0), x.shape->size()));
  const Order order{call.call.node.op == "ArgMax", attributes.get_int("select_last_index", 0) != 0,
                    true};
  visit(NumberTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    launch_blocks(
        Queue(call), lines.count,
        Select<T>{nullptr, data<int64_t>(call.call.results[0]), data<T>(x), lines, 1, order});
  });
}

void top_k(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const ir::Attributes& attributes = call.call.node.attributes;
  const size_t axis = ir::normalize_axis(attributes.get_int("axis", -1), x.shape->size());
  const Lines lines(*x.shape, axis);
  const auto& values = result(call, 0);
  const auto& indices = result(call, 1);
  const int64_t count = (*(values ? values : indices).shape)[axis];
  visit(NumberTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    launch_blocks(Queue(call), lines.count,
                  Select<T>{data<T>(values),
                            data<int64_t>(indices),
                            data<T>(x),
                            lines,
                            count,
                            {attributes.get_int("largest", 1) != 0, false, false}});
  });
}

// Whole lines are walked for every entry that is selected: sorts of long ones are the host's.
bool selects_few(const ir::Graph& graph, const ir::Node& node) {
  constexpr int64_t kMostSteps = int64_t{1} << 27;  // of a line
  const ValueId result = node.output(0) ? node.output(0) : node.output(1);
  const ir::Shape& shape = graph.shape(node.inputs[0]);
  const size_t axis = ir::normalize_axis(node.attributes.get_int("axis", -1), shape.size());
  return takes<NumberTypes>(graph, node) && shape[axis] * graph.shape(result)[axis] <= kMostSteps;
}

// kLanes entries at a time: each thread adds what is 1, 2, 4, ... entries before its own.
template <typename T>
struct RunningSum {
  using A = Total<T>;
  static constexpr int kThreads = kLanes;
  struct Shared {
    A sum[2][kLanes];
    A carry[2];  // of the chunks before, by the parity of the chunk
  };
  struct Registers {};

  T* y;
  const T* x;
  Lines lines;
  bool exclusive;
  bool reverse;

  AUTOSP_DEVICE_ONLY void operator()(Block<RunningSum>& block) const {
    const int64_t line = block.index();
    Shared& s = block.shared();
    int parity = 0;
    for (int64_t first = 0; first < lines.extent; first += kLanes, parity = 1 - parity) {
      block.each([&](int thread) {
        if (first == 0 && thread == 0) s.carry[0] = 0;
        s.sum[0][thread] = first + thread < lines.extent ? load(line, first + thread) : A{0};
      });
      for (int level = 0; level < kTreePhases; ++level) {
        block.each([&](int thread) {
          const A* from = s.sum[level % 2];
          const int before = thread - (1 << level);
          s.sum[1 - level % 2][thread] = from[thread] + (before >= 0 ? from[before] : A{0});
        });
      }
      block.each([&](int thread) {
        const A* sum = s.sum[kTreePhases % 2];
        if (first + thread < lines.extent) {
          const A own = exclusive ? (thread > 0 ? sum[thread - 1] : A{0}) : sum[thread];
          y[place(line, first + thread)] = T(static_cast<Compute<T>>(s.carry[parity] + own));
        }
        if (thread == kLanes - 1) s.carry[1 - parity] = s.carry[parity] + sum[thread];
      });
    }
  }

 private:
  AUTOSP_DEVICE int64_t place(int64_t line, int64_t at) const {
    return lines.place(line, reverse ? lines.extent - 1 - at : at, lines.extent);
  }
  AUTOSP_DEVICE A load(int64_t line, int64_t at) const {
    return static_cast<A>(static_cast<Compute<T>>(x[place(line, at)]));
  }
};

bool axis_is_known(const ir::Graph& graph, const ir::Node& node) {
  return takes<NumberTypes>(graph, node) && is_known(graph, node, 1);
}

void running_sum(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const ir::Attributes& attributes = call.call.node.attributes;
  const Lines lines(*x.shape, ir::normalize_axis(known(call, 1)[0], x.shape->size()));
  visit(NumberTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    launch_blocks(Queue(call), lines.count,
                  RunningSum<T>{data<T>(call.call.results[0]), data<T>(x), lines,
                                attributes.get_int("exclusive", 0) != 0,
                                attributes.get_int("reverse", 0) != 0});
  });
}

constexpr KernelRow kRows[] = {
    {"", "ArgMax", takes<NumberTypes>, arg_extreme},
    {"", "ArgMin", takes<NumberTypes>, arg_extreme},
    {"", "TopK", selects_few, top_k},
    {"", "CumSum", axis_is_known, running_sum},
};

}  // namespace

std::span<const KernelRow> ordering_rows() { return kRows; }

}  // namespace autosp::kernels

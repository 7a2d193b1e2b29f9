// Elementwise operators of two operands or more, with broadcasting.
#include <map>

#include "cuda/kernels/faults.h"
#include "cuda/kernels/map.h"
#include "cuda/kernels/rows.h"

namespace autosp::kernels {

namespace {

enum class Op : uint8_t {
  kAdd,
  kSub,
  kMul,
  kDiv,
  kMax,
  kMin,
  kPRelu,
  // Results are bool.
  kEqual,
  kLess,
  kLessOrEqual,
  kGreater,
  kGreaterOrEqual,
  // Of bool.
  kAnd,
  kOr,
  kXor,
};

template <typename T>
AUTOSP_DEVICE T combine(Op op, T x, T y) {
  switch (op) {
    case Op::kAdd:
      return x + y;
    case Op::kSub:
      return x - y;
    case Op::kMul:
      return x * y;
    case Op::kDiv:
      return x / y;
    case Op::kMax:
      return x > y || x != x ? x : y;  // a NaN wins
    case Op::kMin:
      return x < y || x != x ? x : y;
    case Op::kPRelu:
      return x < T{0} ? x * y : x;
    default:
      return x;
  }
}

template <typename T>
AUTOSP_DEVICE bool compare(Op op, T x, T y) {
  switch (op) {
    case Op::kEqual:
      return x == y;
    case Op::kLess:
      return x < y;
    case Op::kLessOrEqual:
      return x <= y;
    case Op::kGreater:
      return y < x;
    case Op::kGreaterOrEqual:
      return y <= x;
    case Op::kAnd:
      return x && y;
    case Op::kOr:
      return x || y;
    case Op::kXor:
      return (x != T{0}) != (y != T{0});
    default:
      return false;
  }
}

template <typename T>
struct Combine {
  Op op;
  AUTOSP_DEVICE T operator()(T x, T y) const {
    using C = Compute<T>;
    return T(combine<C>(op, static_cast<C>(x), static_cast<C>(y)));
  }
};
template <typename T>
struct Compare {
  Op op;
  AUTOSP_DEVICE bool operator()(T x, T y) const {
    using C = Compute<T>;
    return compare<C>(op, static_cast<C>(x), static_cast<C>(y));
  }
};

const std::map<std::string_view, Op>& arithmetic() {
  static const std::map<std::string_view, Op> kOps = {
      {"Add", Op::kAdd}, {"Sub", Op::kSub}, {"Mul", Op::kMul}, {"Div", Op::kDiv},
      {"Max", Op::kMax}, {"Min", Op::kMin}, {"Sum", Op::kAdd}, {"PRelu", Op::kPRelu}};
  return kOps;
}

const std::map<std::string_view, Op>& comparisons() {
  static const std::map<std::string_view, Op> kOps = {{"Equal", Op::kEqual},
                                                      {"Less", Op::kLess},
                                                      {"LessOrEqual", Op::kLessOrEqual},
                                                      {"Greater", Op::kGreater},
                                                      {"GreaterOrEqual", Op::kGreaterOrEqual}};
  return kOps;
}

const std::map<std::string_view, Op>& logic() {
  static const std::map<std::string_view, Op> kOps = {
      {"And", Op::kAnd}, {"Or", Op::kOr}, {"Xor", Op::kXor}, {"Equal", Op::kEqual}};
  return kOps;
}

template <typename Y, typename X, typename F>
void zip_call(const executor::KernelCall& call, F f) {
  const auto& a = call.call.operands[0];
  const auto& b = call.call.operands[1];
  const auto& y = call.call.results[0];
  zip(Queue(call), *y.shape, data<Y>(y), *a.shape, data<X>(a), *b.shape, data<X>(b), f);
}

void binary(const executor::KernelCall& call) {
  const Op op = arithmetic().at(call.call.node.op);
  visit(NumberTypes{}, call.call.operands[0].dtype,
        [&]<typename T>(std::type_identity<T>) { zip_call<T, T>(call, Combine<T>{op}); });
}

void comparison(const executor::KernelCall& call) {
  const Op op = comparisons().at(call.call.node.op);
  visit(NumberTypes{}, call.call.operands[0].dtype,
        [&]<typename T>(std::type_identity<T>) { zip_call<bool, T>(call, Compare<T>{op}); });
}

void logical(const executor::KernelCall& call) {
  zip_call<bool, bool>(call, Compare<bool>{logic().at(call.call.node.op)});
}

// Of integers. A division by zero is reported to the run.
enum class Whole : uint8_t { kDiv, kMod, kRemainder, kAnd, kOr, kXor };

template <typename T>
struct OfIntegers {
  Whole op;
  Fault fault;
  AUTOSP_DEVICE T operator()(T x, T y) const {
    if (op == Whole::kAnd) return x & y;
    if (op == Whole::kOr) return x | y;
    if (op == Whole::kXor) return x ^ y;
    if (y == 0) {
      fault.report();
      return 0;
    }
    if (y == -1) {  // the quotient may not be representable
      return op == Whole::kDiv ? static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(x)) : 0;
    }
    if (op == Whole::kDiv) return x / y;
    const T remainder = x % y;
    const bool is_other_sign = remainder != 0 && (remainder < 0) != (y < 0);
    return op == Whole::kMod && is_other_sign ? remainder + y : remainder;
  }
};

void of_integers(const executor::KernelCall& call) {
  static const std::map<std::string_view, Whole> kOps = {{"Div", Whole::kDiv},
                                                         {"Mod", Whole::kMod},
                                                         {"BitwiseAnd", Whole::kAnd},
                                                         {"BitwiseOr", Whole::kOr},
                                                         {"BitwiseXor", Whole::kXor}};
  Whole op = kOps.at(call.call.node.op);
  if (op == Whole::kMod && call.call.node.attributes.get_int("fmod", 0) != 0) {
    op = Whole::kRemainder;
  }
  visit(IntegerTypes{}, call.call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    zip_call<T, T>(call, OfIntegers<T>{op, Fault(call)});
  });
}

// The exponent has its own element type.
template <typename T, typename E>
struct Power {
  T* y;
  const T* x;
  const E* exponent;
  Grid<2> grid;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    using C = Compute<T>;
    const auto at = grid.offsets(i);
    const auto base = static_cast<C>(x[at.at[0]]);
    const auto power = static_cast<C>(static_cast<Compute<E>>(exponent[at.at[1]]));
    y[i] = T(power == C{2} ? base * base : static_cast<C>(pow(base, power)));
  }
};

bool power_is_known(const ir::Graph& graph, const ir::Node& node) {
  return takes<FloatTypes>(graph, node) &&
         contains(NumberTypes{}, graph.type(node.inputs[1]).dtype);
}

void power(const executor::KernelCall& call) {
  const auto& x = call.call.operands[0];
  const auto& e = call.call.operands[1];
  const auto& y = call.call.results[0];
  const Grid<2> grid(
      *y.shape, {broadcast_strides(*x.shape, *y.shape), broadcast_strides(*e.shape, *y.shape)});
  visit(FloatTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    visit(NumberTypes{}, e.dtype, [&]<typename E>(std::type_identity<E>) {
      launch(Queue(call), grid.count, Power<T, E>{data<T>(y), data<T>(x), data<E>(e), grid});
    });
  });
}

// Sum, Mean, Max and Min of any number: 16-bit floats are rounded once, at the end.
constexpr int kMostOperands = 16;
template <typename T>
struct Fold {
  Op op;
  bool divides;
  int operands;
  T* y;
  const T* x[kMostOperands];
  Grid<kMostOperands> grid;
  AUTOSP_DEVICE void operator()(int64_t i) const {
    using C = Compute<T>;
    const auto at = grid.offsets(i);
    auto total = static_cast<C>(x[0][at.at[0]]);
    for (int k = 1; k < operands; ++k)
      total = combine<C>(op, total, static_cast<C>(x[k][at.at[k]]));
    y[i] = T(divides ? total / static_cast<C>(static_cast<float>(operands)) : total);
  }
};

bool has_few_operands(const ir::Graph& graph, const ir::Node& node) {
  return gives<NumberTypes>(graph, node) && node.inputs.size() <= kMostOperands &&
         (node.op != "Mean" || gives<FloatTypes>(graph, node));
}

void fold(const executor::KernelCall& call) {
  const std::string& name = call.call.node.op;
  const auto& y = call.call.results[0];
  const auto& operands = call.call.operands;
  const Op op = name == "Mean" ? Op::kAdd : arithmetic().at(name);
  std::array<Strides, kMostOperands> strides;
  for (size_t k = 0; k < kMostOperands; ++k) {
    strides[k] = broadcast_strides(*operands[k < operands.size() ? k : 0].shape, *y.shape);
  }
  const Grid<kMostOperands> grid(*y.shape, strides);
  visit(NumberTypes{}, y.dtype, [&]<typename T>(std::type_identity<T>) {
    Fold<T> body{op, name == "Mean", static_cast<int>(operands.size()), data<T>(y), {}, grid};
    for (size_t k = 0; k < operands.size(); ++k) body.x[k] = data<T>(operands[k]);
    launch(Queue(call), grid.count, body);
  });
}

bool is_of_two(const ir::Graph& graph, const ir::Node& node) {
  return takes<NumberTypes>(graph, node) && node.inputs.size() == 2;
}

bool divides_floats(const ir::Graph& graph, const ir::Node& node) {
  return takes<FloatTypes>(graph, node);
}

}  // namespace

std::span<const KernelRow> binary_rows() {
  static const std::vector<KernelRow> kRows = [] {
    constexpr auto kElementwise = reference::Aliasing::kElementwise;
    std::vector<KernelRow> rows;
    for (const auto& [op, entry] : arithmetic()) {
      rows.push_back(
          {"", op, op == "Div" ? divides_floats : is_of_two, binary, nullptr, kElementwise});
    }
    for (const auto& [op, entry] : comparisons()) {
      rows.push_back({"", op, takes<NumberTypes>, comparison, nullptr, kElementwise});
    }
    for (const auto& [op, entry] : logic()) {
      rows.push_back({"", op, takes<TypeList<bool>>, logical, nullptr, kElementwise});
    }
    for (const char* op : {"Div", "Mod", "BitwiseAnd", "BitwiseOr", "BitwiseXor"}) {
      rows.push_back({"", op, takes<IntegerTypes>, of_integers, nullptr, kElementwise});
    }
    rows.push_back({"", "Pow", power_is_known, power, nullptr, kElementwise});
    for (const char* op : {"Sum", "Mean", "Max", "Min"}) {
      rows.push_back({"", op, has_few_operands, fold, nullptr, kElementwise});
    }
    return rows;
  }();
  return kRows;
}

}  // namespace autosp::kernels

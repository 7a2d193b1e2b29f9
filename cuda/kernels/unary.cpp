// Elementwise operators of one operand.
#include <map>

#include "cuda/kernels/map.h"
#include "cuda/kernels/rows.h"

namespace autosp::kernels {

namespace {

enum class Op : uint8_t {
  kNeg,
  kAbs,
  kSign,
  kRelu,
  kExp,
  kLog,
  kSqrt,
  kReciprocal,
  kFloor,
  kCeil,
  kRound,
  kSin,
  kCos,
  kTan,
  kAsin,
  kAcos,
  kAtan,
  kSinh,
  kCosh,
  kAsinh,
  kAcosh,
  kAtanh,
  kTanh,
  kErf,
  kSigmoid,
  kSoftplus,
  kSoftsign,
  kMish,
  kHardSwish,
  kGelu,
  kGeluTanh,
  kLeakyRelu,
  kElu,
  kCelu,
  kSelu,
  kHardSigmoid,
};

struct Entry {
  Op op;
  const char* first = nullptr;  // attributes and their defaults
  float alpha = 0;
  const char* second = nullptr;
  float beta = 0;
};

const std::map<std::string_view, Entry>& entries() {
  static const std::map<std::string_view, Entry> kEntries = {
      {"Neg", {Op::kNeg}},
      {"Abs", {Op::kAbs}},
      {"Sign", {Op::kSign}},
      {"Relu", {Op::kRelu}},
      {"Exp", {Op::kExp}},
      {"Log", {Op::kLog}},
      {"Sqrt", {Op::kSqrt}},
      {"Reciprocal", {Op::kReciprocal}},
      {"Floor", {Op::kFloor}},
      {"Ceil", {Op::kCeil}},
      {"Round", {Op::kRound}},
      {"Sin", {Op::kSin}},
      {"Cos", {Op::kCos}},
      {"Tan", {Op::kTan}},
      {"Asin", {Op::kAsin}},
      {"Acos", {Op::kAcos}},
      {"Atan", {Op::kAtan}},
      {"Sinh", {Op::kSinh}},
      {"Cosh", {Op::kCosh}},
      {"Asinh", {Op::kAsinh}},
      {"Acosh", {Op::kAcosh}},
      {"Atanh", {Op::kAtanh}},
      {"Tanh", {Op::kTanh}},
      {"Erf", {Op::kErf}},
      {"Sigmoid", {Op::kSigmoid}},
      {"Softplus", {Op::kSoftplus}},
      {"Softsign", {Op::kSoftsign}},
      {"Mish", {Op::kMish}},
      {"HardSwish", {Op::kHardSwish}},
      {"Gelu", {Op::kGelu}},
      {"LeakyRelu", {Op::kLeakyRelu, "alpha", 0.01F}},
      {"Elu", {Op::kElu, "alpha", 1.0F}},
      {"Celu", {Op::kCelu, "alpha", 1.0F}},
      {"Selu",
       {Op::kSelu, "alpha", 1.67326319217681884765625F, "gamma", 1.05070102214813232421875F}},
      {"HardSigmoid", {Op::kHardSigmoid, "alpha", 0.2F, "beta", 0.5F}},
  };
  return kEntries;
}

template <typename T>
AUTOSP_DEVICE T softplus(T x) {
  return (x > 0 ? x : T{0}) + log1p(exp(-fabs(x)));
}
template <typename T>
AUTOSP_DEVICE T between_0_and_1(T x) {
  return x < 0 ? T{0} : x > 1 ? T{1} : x;
}
template <typename T>
AUTOSP_DEVICE T sigmoid(T x) {
  if (x >= 0) return T{1} / (T{1} + exp(-x));
  const T e = exp(x);
  return e / (T{1} + e);
}

// T: float or double.
template <typename T>
AUTOSP_DEVICE T apply(Op op, T x, T alpha, T beta) {
  constexpr T kRootTwo = T(1.41421356237309504880);
  constexpr T kRootTwoOverPi = T(0.79788456080286535588);
  switch (op) {
    case Op::kNeg:
      return -x;
    case Op::kAbs:
      return fabs(x);
    case Op::kSign:
      return x != x ? x : T(x > 0) - T(x < 0);
    case Op::kRelu:
      return x < 0 ? T{0} : x;
    case Op::kExp:
      return exp(x);
    case Op::kLog:
      return log(x);
    case Op::kSqrt:
      return sqrt(x);
    case Op::kReciprocal:
      return T{1} / x;
    case Op::kFloor:
      return floor(x);
    case Op::kCeil:
      return ceil(x);
    case Op::kRound:
      return nearbyint(x);
    case Op::kSin:
      return sin(x);
    case Op::kCos:
      return cos(x);
    case Op::kTan:
      return tan(x);
    case Op::kAsin:
      return asin(x);
    case Op::kAcos:
      return acos(x);
    case Op::kAtan:
      return atan(x);
    case Op::kSinh:
      return sinh(x);
    case Op::kCosh:
      return cosh(x);
    case Op::kAsinh:
      return asinh(x);
    case Op::kAcosh:
      return acosh(x);
    case Op::kAtanh:
      return atanh(x);
    case Op::kTanh:
      return tanh(x);
    case Op::kErf:
      return erf(x);
    case Op::kSigmoid:
      return sigmoid(x);
    case Op::kSoftplus:
      return softplus(x);
    case Op::kSoftsign:
      return x / (T{1} + fabs(x));
    case Op::kMish:
      return x * tanh(softplus(x));
    case Op::kHardSwish:
      return x * between_0_and_1(x / T{6} + T(0.5));
    case Op::kGelu:
      return T(0.5) * x * (T{1} + erf(x / kRootTwo));
    case Op::kGeluTanh:
      return T(0.5) * x * (T{1} + tanh(kRootTwoOverPi * (x + T(0.044715) * x * x * x)));
    case Op::kLeakyRelu:
      return x < 0 ? alpha * x : x;
    case Op::kElu:
      return x < 0 ? alpha * expm1(x) : x;
    case Op::kCelu:
      return x > 0 ? x : alpha * expm1(x / alpha);
    case Op::kSelu:
      return beta * (x > 0 ? x : alpha * expm1(x));
    case Op::kHardSigmoid:
      return between_0_and_1(alpha * x + beta);
  }
  return x;
}

template <typename T>
struct Apply {
  Op op;
  float alpha;
  float beta;
  AUTOSP_DEVICE T operator()(T x) const {
    using C = Compute<T>;
    return T(apply<C>(op, static_cast<C>(x), C(alpha), C(beta)));
  }
};

void unary(const executor::KernelCall& call) {
  const ir::Node& node = call.call.node;
  Entry entry = entries().at(node.op);
  if (node.op == "Gelu" && node.attributes.get_string("approximate", "none") == "tanh") {
    entry.op = Op::kGeluTanh;
  }
  if (entry.first != nullptr) entry.alpha = node.attributes.get_float(entry.first, entry.alpha);
  if (entry.second != nullptr) entry.beta = node.attributes.get_float(entry.second, entry.beta);
  const auto& x = call.call.operands[0];
  const auto& y = call.call.results[0];
  visit(FloatTypes{}, x.dtype, [&]<typename T>(std::type_identity<T>) {
    map(Queue(call), ir::num_elements(*y.shape), data<T>(y), data<T>(x),
        Apply<T>{entry.op, entry.alpha, entry.beta});
  });
}

struct Not {
  AUTOSP_DEVICE bool operator()(bool x) const { return !x; }
};

void logical_not(const executor::KernelCall& call) {
  map(Queue(call), ir::num_elements(*call.call.results[0].shape), data<bool>(call.call.results[0]),
      data<bool>(call.call.operands[0]), Not{});
}

struct BitwiseNot {
  template <typename T>
  AUTOSP_DEVICE T operator()(T x) const {
    return static_cast<T>(~x);
  }
};

void bitwise_not(const executor::KernelCall& call) {
  visit(IntegerTypes{}, call.call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    map(Queue(call), ir::num_elements(*call.call.results[0].shape), data<T>(call.call.results[0]),
        data<T>(call.call.operands[0]), BitwiseNot{});
  });
}

// Neg, Abs and Sign of integers, without overflow.
template <typename T>
struct OfInteger {
  Op op;
  AUTOSP_DEVICE T operator()(T x) const {
    if (op == Op::kSign) return static_cast<T>((x > 0) - (x < 0));
    if (op == Op::kAbs && x >= 0) return x;
    return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(x));
  }
};

void of_integer(const executor::KernelCall& call) {
  const Op op = entries().at(call.call.node.op).op;
  visit(IntegerTypes{}, call.call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    map(Queue(call), ir::num_elements(*call.call.results[0].shape), data<T>(call.call.results[0]),
        data<T>(call.call.operands[0]), OfInteger<T>{op});
  });
}

template <typename T>
struct IsInf {
  bool positive, negative;
  AUTOSP_DEVICE bool operator()(T x) const {
    const auto value = static_cast<Compute<T>>(x);
    return (positive && value == Compute<T>{INFINITY}) ||
           (negative && value == -Compute<T>{INFINITY});
  }
};

void is_inf(const executor::KernelCall& call) {
  const ir::Attributes& attributes = call.call.node.attributes;
  const bool positive = attributes.get_int("detect_positive", 1) != 0;
  const bool negative = attributes.get_int("detect_negative", 1) != 0;
  visit(FloatTypes{}, call.call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    map(Queue(call), ir::num_elements(*call.call.results[0].shape),
        data<bool>(call.call.results[0]), data<T>(call.call.operands[0]),
        IsInf<T>{positive, negative});
  });
}

template <typename T>
struct IsNaN {
  AUTOSP_DEVICE bool operator()(T x) const {
    const auto value = static_cast<Compute<T>>(x);
    return value != value;
  }
};

void is_nan(const executor::KernelCall& call) {
  visit(FloatTypes{}, call.call.operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    map(Queue(call), ir::num_elements(*call.call.results[0].shape),
        data<bool>(call.call.results[0]), data<T>(call.call.operands[0]), IsNaN<T>{});
  });
}

}  // namespace

std::span<const KernelRow> unary_rows() {
  static const std::vector<KernelRow> kRows = [] {
    constexpr auto kElementwise = reference::Aliasing::kElementwise;
    std::vector<KernelRow> rows;
    for (const auto& [op, entry] : entries()) {
      rows.push_back({"", op, takes<FloatTypes>, unary, nullptr, kElementwise});
    }
    rows.push_back({"", "Not", nullptr, logical_not, nullptr, kElementwise});
    rows.push_back({"", "IsNaN", takes<FloatTypes>, is_nan, nullptr, kElementwise});
    rows.push_back({"", "IsInf", takes<FloatTypes>, is_inf, nullptr, kElementwise});
    rows.push_back({"", "BitwiseNot", takes<IntegerTypes>, bitwise_not, nullptr, kElementwise});
    for (const char* op : {"Neg", "Abs", "Sign"}) {
      rows.push_back({"", op, takes<IntegerTypes>, of_integer, nullptr, kElementwise});
    }
    return rows;
  }();
  return kRows;
}

}  // namespace autosp::kernels

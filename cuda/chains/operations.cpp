#include "cuda/chains/operations.h"

#include "base/error.h"

namespace autosp::chains {

using executor::chain::Op;

std::string operation(Op op) {
  switch (op) {
    case Op::kNeg:
      return "-{0}";
    case Op::kAbs:
      return "fabsf({0})";
    case Op::kExp:
      return "expf({0})";
    case Op::kLog:
      return "logf({0})";
    case Op::kSqrt:
      return "sqrtf({0})";
    case Op::kReciprocal:
      return "1.0F / {0}";
    case Op::kSigmoid:
      return "sigmoid({0})";
    case Op::kTanh:
      return "tanhf({0})";
    case Op::kErf:
      return "erff({0})";
    case Op::kRelu:
      return "{0} < 0.0F ? 0.0F : {0}";
    case Op::kSin:
      return "sinf({0})";
    case Op::kCos:
      return "cosf({0})";
    case Op::kCast:
    case Op::kExpand:
      return "{0}";
    case Op::kAdd:
      return "{0} + {1}";
    case Op::kSub:
      return "{0} - {1}";
    case Op::kMul:
      return "{0} * {1}";
    case Op::kDiv:
      return "{0} / {1}";
    case Op::kMax:
      return "larger({0}, {1})";
    case Op::kMin:
      return "smaller({0}, {1})";
    case Op::kPow:
      return "power({0}, {1})";
    case Op::kWhere:
      return "{0} ? {1} : {2}";
    default:
      AUTOSP_CHECK(false, "a step along rows");
  }
}

bool is_exact(Op op) {
  switch (op) {
    case Op::kNeg:
    case Op::kAbs:
    case Op::kRelu:
    case Op::kCast:
    case Op::kExpand:
    case Op::kMax:
    case Op::kMin:
    case Op::kWhere:
    case Op::kReduceMax:
      return true;
    default:
      return false;
  }
}

const char* const kOperations = R"(
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
  T element[kCount];
};
template <int kCount, typename T>
AUTOSP_CHAIN Pack<T, kCount> load(const T* from) {
  return *reinterpret_cast<const Pack<T, kCount>*>(from);
}
template <int kCount, typename T>
AUTOSP_CHAIN void store(T* to, const Pack<T, kCount>& pack) {
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

AUTOSP_CHAIN float from_bits(unsigned bits) {
  union {
    unsigned word;
    float number;
  } u = {bits};
  return u.number;
}
AUTOSP_CHAIN float larger(float x, float y) { return x > y || x != x ? x : y; }  // a NaN wins
AUTOSP_CHAIN float smaller(float x, float y) { return x < y || x != x ? x : y; }
// No branch, which threads of a warp would take both ways.
AUTOSP_CHAIN float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x >= 0.0F ? 1.0F : e) / (1.0F + e);
}
AUTOSP_CHAIN float power(float x, float y) { return y == 2.0F ? x * x : powf(x, y); }

)";

}  // namespace autosp::chains

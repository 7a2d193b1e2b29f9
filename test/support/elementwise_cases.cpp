// Elementwise operators: operands broadcast to the result.
#include "support/operator_cases.h"

namespace autosp::test {

using ir::DataType;
using ir::Shape;

namespace {

using Make = CaseBuilder&;

CaseMaker unary(const std::string& op) {
  return [op](Make c) { c.test(op, {c.floats(c.shape(1, 4))}); };
}

// Two float operands.
CaseMaker binary(const std::string& op) {
  return [op](Make c) {
    const Shape result = c.shape(1, 4);
    const bool first_is_whole = c.coin();
    const Shape other = c.broadcastable_to(result);
    c.test(op,
           {c.floats(first_is_whole ? result : other), c.floats(first_is_whole ? other : result)});
  };
}

// Two integer operands, of which the second is in [low, high).
CaseMaker integer_binary(const std::string& op, int64_t low, int64_t high, DataType dtype) {
  return [=](Make c) {
    const Shape result = c.shape(1, 3);
    c.test(op, {c.integers(result, 0, 100, dtype),
                c.integers(c.broadcastable_to(result), low, high, dtype)});
  };
}

CaseMaker logical(const std::string& op) {
  return [op](Make c) {
    const Shape result = c.shape(1, 4);
    c.test(op, {c.bools(result), c.bools(c.broadcastable_to(result))});
  };
}

CaseMaker several(const std::string& op) {
  return [op](Make c) {
    const Shape result = c.shape(1, 3);
    std::vector<ValueId> operands = {c.floats(result)};
    for (int64_t k = c.integer(0, 2); k > 0; --k) {
      operands.push_back(c.floats(c.broadcastable_to(result)));
    }
    c.test(op, operands);
  };
}

void where(Make c) {
  const Shape result = c.shape(1, 4);
  const ValueId zero = c.build().scalar(DataType::kFloat32, 0);
  const ValueId a = c.floats(c.broadcastable_to(result));
  const ValueId b = c.floats(result);
  const ValueId condition = c.bools(c.broadcastable_to(result));
  switch (c.integer(0, 2)) {
    case 0:
      return c.test("Where", {condition, a, b});
    case 1:
      return c.test("Where", {condition, zero, b});
    default:
      return c.test("Where", {condition, b, zero});
  }
}

void clip(Make c) {
  const ValueId low = c.coin() ? c.build().scalar(DataType::kFloat32, -0.5) : ValueId();
  const ValueId high = c.coin() ? c.floats({}) : ValueId();
  c.test("Clip", {c.floats(c.shape(1, 3)), low, high});
}

void cast(Make c) {
  const Shape shape = c.shape(1, 3);
  const ValueId x = c.one_of<ValueId>({c.floats(shape), c.integers(shape, -9, 9)});
  const DataType to = c.one_of<DataType>({DataType::kFloat32, DataType::kFloat64, DataType::kInt64,
                                          DataType::kBool, DataType::kBFloat16});
  c.test("Cast", {x}, {{"to", static_cast<int64_t>(to)}});
}

void prelu(Make c) {
  const Shape result = c.shape(1, 4);
  c.test("PRelu", {c.floats(result), c.floats(c.broadcastable_to(result))});
}

void gelu(Make c) {
  c.test("Gelu", {c.floats(c.shape(1, 3))},
         {{"approximate", c.one_of<std::string>({"none", "tanh"})}});
}

}  // namespace

CaseMakers elementwise_cases() {
  CaseMakers makers;
  for (const char* op :
       {"Neg",      "Identity", "Abs",   "Sign",        "Exp",       "Log",   "Sqrt", "Reciprocal",
        "Sigmoid",  "Tanh",     "Erf",   "Relu",        "LeakyRelu", "Elu",   "Selu", "Softplus",
        "Softsign", "Mish",     "Celu",  "HardSigmoid", "HardSwish", "Floor", "Ceil", "Round",
        "Sin",      "Cos",      "Tan",   "Asin",        "Acos",      "Atan",  "Sinh", "Cosh",
        "Asinh",    "Acosh",    "Atanh", "IsNaN",       "IsInf"}) {
    makers[op] = unary(op);
  }
  for (const char* op : {"Add", "Sub", "Mul", "Div", "Pow", "Equal", "Less", "LessOrEqual",
                         "Greater", "GreaterOrEqual"}) {
    makers[op] = binary(op);
  }
  for (const char* op : {"And", "Or", "Xor"}) makers[op] = logical(op);
  for (const char* op : {"BitwiseAnd", "BitwiseOr", "BitwiseXor"}) {
    makers[op] = integer_binary(op, 0, 100, DataType::kInt32);
  }
  for (const char* op : {"Sum", "Mean", "Max", "Min"}) makers[op] = several(op);
  makers["Mod"] = integer_binary("Mod", 1, 9, DataType::kInt64);
  makers["Not"] = [](Make c) { c.test("Not", {c.bools(c.shape(1, 4))}); };
  makers["BitwiseNot"] = [](Make c) {
    c.test("BitwiseNot", {c.integers(c.shape(1, 3), 0, 100, DataType::kInt32)});
  };
  makers["Where"] = where;
  makers["Clip"] = clip;
  makers["Cast"] = cast;
  makers["PRelu"] = prelu;
  makers["Gelu"] = gelu;
  return makers;
}

}  // namespace autosp::test

// A chain: elementwise operators and sums along rows that run as one, block of rows by block of
// rows, so that what is between them stays in the cache and is never written to memory.
//
// All values are rows of one iteration shape [..., columns]: either full, or one number per row
// ([..., 1]). In a graph a chain is one node, `autosp::Chain`, which the executor makes for itself
// (fuse_elementwise.h) and no file ever holds. Its attributes:
//
//   shape      the iteration shape
//   ops        names of the steps
//   arity      operands of each
//   arguments  of all steps, one after the other: k < operands of the node is such an operand,
//              operands + k is the result of step k
//   rows       the steps whose results are one number per row
//   results    the steps whose results are the node's
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ir/graph.h"

namespace autosp::executor::chain {

inline constexpr std::string_view kOp = "Chain";

enum class Op : uint8_t {
  // Of one operand.
  kNeg,
  kAbs,
  kExp,
  kLog,
  kSqrt,
  kReciprocal,
  kSigmoid,
  kTanh,
  kErf,
  kRelu,
  kSin,
  kCos,
  kExpand,
  // Of two.
  kAdd,
  kSub,
  kMul,
  kDiv,
  kMax,
  kMin,
  kPow,
  // Condition (bool, an operand of the node), then, else.
  kWhere,
  // Of a full value: one number per row.
  kReduceSum,
  kReduceMax,
  // Of a full value along its rows.
  kSoftmax,
  kLogSoftmax,
};

// The step that a node would be, or nullopt when it is none: float32, of at least one row of at
// least two columns. Its data operands are the first `arity` ones.
struct Step {
  Op op = Op::kAdd;
  size_t arity = 0;
  ir::Shape shape;      // iteration shape; of a step between row values it ends in 1
  bool is_row = false;  // result: one number per row
};
std::optional<Step> step_of(const ir::Graph& graph, const ir::Node& node);

std::optional<Op> find_op(const std::string& name);

inline bool reduces(Op op) { return op == Op::kReduceSum || op == Op::kReduceMax; }
inline bool needs_rows(Op op) { return reduces(op) || op == Op::kSoftmax || op == Op::kLogSoftmax; }

}  // namespace autosp::executor::chain

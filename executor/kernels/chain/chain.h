// A chain: elementwise operators and sums along rows that run as one, so that what is between them
// is never written to memory: block of rows by block of rows in the cache (run.cpp), or in a
// device's registers (cuda/chains).
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
//   types      ir::DataType of the steps' results
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
  kCast,
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

// The step that a node would be, or nullopt when it is none: of float32, float16 or bfloat16, and
// of at least one element. Its data operands are the first `arity` ones.
struct Step {
  Op op = Op::kAdd;
  size_t arity = 0;
  ir::Shape shape;      // iteration shape; of a step between row values it ends in 1
  bool is_row = false;  // result: one number per row
};
std::optional<Step> step_of(const ir::Graph& graph, const ir::Node& node);

// What a chain's node says of one of its steps.
struct Link {
  Op op = Op::kAdd;
  std::vector<size_t> arguments;  // as the attribute has them
  ir::DataType type = ir::DataType::kUndefined;
  bool is_row = false;  // one number per row
  int result = -1;      // of the node
};
std::vector<Link> links_of(const ir::Node& node);

// An operand of the node, as rows of the iteration shape see it.
struct Layout {
  int64_t row = 0;   // elements from one row to the next
  int64_t step = 0;  // 1: a row of its own; 0: one number per row
  bool regular = true;
  std::vector<int64_t> strides;  // of the leading dimensions, where it is not regular
};
Layout layout_of(const ir::Shape& operand, const ir::Shape& shape);

// Whether rows do not matter, as every operand is as large as the result or one number: arrays may
// then be cut anywhere, whatever their shape.
bool is_flat(const std::vector<Link>& links, const std::vector<Layout>& layouts,
             const ir::Shape& shape);

inline bool reduces(Op op) { return op == Op::kReduceSum || op == Op::kReduceMax; }
inline bool needs_rows(Op op) { return reduces(op) || op == Op::kSoftmax || op == Op::kLogSoftmax; }

}  // namespace autosp::executor::chain

// Reference kernels: every operator of a Graph, written for the reader, one element at a time.
//
// They define what an operator means in this project. Constant folding evaluates with them, the
// executor falls back on them, and every faster kernel is tested against them.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "ir/graph.h"

namespace autosp::reference {

// Read-only and writable views of row-major data; `data` is null for an absent optional operand.
struct Operand {
  ir::DataType dtype = ir::DataType::kUndefined;
  const ir::Shape* shape = nullptr;
  const void* data = nullptr;
  explicit operator bool() const { return data != nullptr; }
};
struct Result {
  ir::DataType dtype = ir::DataType::kUndefined;
  const ir::Shape* shape = nullptr;
  void* data = nullptr;
  explicit operator bool() const { return data != nullptr; }
};

// One execution of one node. Result types are known beforehand; results never alias operands unless
// the kernel is registered as safe for that.
struct Call {
  const ir::Node& node;
  std::span<const Operand> operands;
  std::span<const Result> results;
};

using Kernel = void (*)(const Call&);

// What results of a kernel may lie over, where that operand is of the result's type: the first
// result only, but for kUpdated.
enum class Aliasing : uint8_t {
  kNone,
  // Any operand: element i of every operand is read before element i of the result is written, and
  // nothing else is read.
  kElementwise,
  // Operand 0: the kernel begins by copying it, or is done with an element before it writes it.
  kOperandZero,
  // Operand 2: the same of what a product is added to.
  kOperandTwo,
  // Of optimizers (ai.onnx.preview.training): each result over the parameter or state that it is
  // the new value of, element by element.
  kUpdated,
};

// The kernel of an operator, or null when there is none.
Kernel find_kernel(std::string_view domain, std::string_view op);

// Of that kernel; kNone when there is none.
Aliasing aliasing_of(std::string_view domain, std::string_view op);

// All operators of ONNX's domains with a kernel, sorted.
std::vector<std::string> operators_with_kernels();

// Evaluates one node on host tensors; throws Error when the operator has no kernel.
std::vector<ir::Tensor> evaluate(const ir::Graph& graph, const ir::Node& node,
                                 std::span<const ir::Tensor> operands);

}  // namespace autosp::reference

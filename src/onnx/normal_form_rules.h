// The rules that bring operators to their normal form, by family, and what they share.
//
// A rule rewrites the operation in place (and returns nothing), or emits what replaces it (and
// returns the values of its results).
#pragma once

#include <span>
#include <string_view>

#include "onnx/emitter.h"

namespace autosp::onnx_io {

using Values = std::optional<std::vector<ValueId>>;
using Rule = Values (*)(Emitter&, Operation&);

struct RuleRow {
  std::string_view op;  // of the standard domain
  Rule rule;
};

// One table per file.
std::span<const RuleRow> view_rules();       // constants, shapes, and views of tensors
std::span<const RuleRow> piece_rules();      // slices, pads, splits
std::span<const RuleRow> reduction_rules();  // reductions and what normalises along axes
std::span<const RuleRow> other_rules();

// Operand k. Throws Error when it is absent.
ValueId operand(const Operation& operation, size_t k);

void set_input(Operation& operation, size_t k, ValueId value);

// Counted from the front. Throws Error for an axis that an operand of this rank has not.
int64_t checked_axis(const Operation& operation, int64_t axis, size_t rank);
std::vector<int64_t> checked_axes(const Operation& operation, std::vector<int64_t> axes,
                                  size_t rank);

// Integers that are an attribute up to some version and input k from then on; nullopt when absent.
// Throws Error when they are computed from what is not known before the run.
std::optional<std::vector<int64_t>> take_ints(Emitter& emitter, Operation& operation,
                                              const std::string& attribute, size_t k);

std::vector<ValueId> one(ValueId value);
Values identity(Emitter& emitter, const Operation& operation);
Values reshape_to(Emitter& emitter, const Operation& operation, ValueId x, ir::Shape shape,
                  const std::string& name);

// Of a collective: operand 2 becomes the attributes that it stands for.
void take_collective_numbers(Emitter& emitter, Operation& operation);

// 0, 1, ..., count - 1.
std::vector<int64_t> iota(size_t count);

}  // namespace autosp::onnx_io

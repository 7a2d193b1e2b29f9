// Attention and its gradient by the formulas of docs/attention.md, in float64, on small blocks:
// what a region has to equal.
#pragma once

#include "transforms/fuse_attention/probe.h"

namespace autosp::transforms::fusion {

// What a row gives in which every key is masked.
enum class DeadRows : uint8_t { kNone, kUniform, kZero, kUnmasked, kNan };
std::string_view name_of(DeadRows dead_rows);  // as in the attribute dead_rows

struct FlashOperands {
  std::map<OperandRole, Block> operands;
  std::vector<Block> terms;  // of dropout: 0 where it drops
  std::vector<bool> bools;   // per term, whether it is one
  // Per term, where it masks; empty for terms that do not. A number added to mask is not in
  // `terms`.
  std::vector<Block> masked;
};

// Every result of the region's; gradients only when there is an output gradient.
std::map<ResultRole, Block> flash_attention(const CanonicalFactors& canonical, const Sizes& sizes,
                                            const Meaning& meaning, const FlashOperands& operands,
                                            DeadRows dead_rows, bool dead_row_gradient);

}  // namespace autosp::transforms::fusion

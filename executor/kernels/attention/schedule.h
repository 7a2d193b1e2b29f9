// What forward and backward have in common: masks made up for blocks, and where in the workspace
// everything lies.
#pragma once

#include <cstddef>
#include <cstdint>

#include "executor/kernel_table.h"
#include "executor/kernels/attention/blocks.h"

namespace autosp::executor::attention {

// Hands out 64-byte aligned stretches of a workspace; without one, only counts.
class Carver {
 public:
  explicit Carver(std::byte* memory) : memory_(memory) {}

  template <typename T>
  T* take(int64_t count) {
    auto* at = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return at;
  }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* memory_;
  int64_t bytes_ = 0;
};

// Operand positions: see docs/attention.md.
struct Positions {
  size_t query;
  size_t optional;
};
inline constexpr Positions kForwardPositions{0, 3};
inline constexpr Positions kBackwardPositions{1, 7};

// The sizes of a node before there is data: masks are absent, except that `has_segments` is known.
reference::AttentionProblem sizes_of(const ir::Graph& graph, const ir::Node& node,
                                     const Positions& positions);

// Sizes and padded widths; all else is empty. `type` is that of the queries.
Problem problem_of(const reference::AttentionProblem& sizes, ir::DataType type);

// Operands and results are float32, or of one 16-bit type with statistics in float32, and no size
// is too large for the blocks' arithmetic.
bool accepts(const ir::Graph& graph, const ir::Node& node);

// Memory for Rows. Const in the end, but somebody has to fill it in.
struct RowsMemory {
  float* begin;
  float* end;
  RowKind* kind;
  float* query_segment;
  float* key_segment;
  Panel* panels;
};
RowsMemory carve_rows(Carver& carver, const reference::AttentionProblem& sizes, bool has_segments,
                      int panel);
// A row's interval ends at the first and the last key that its other masks leave, so that blocks of
// keys outside (of other documents) are skipped.
Rows fill_rows(const reference::AttentionProblem& sizes, const RowsMemory& memory, int panel);

// A [batch, heads, rows, width] operand or result.
Array array_of(const reference::Operand& operand);
Array array_of(const reference::Result& result);

// The sinks as floats, in `memory` unless they are; null without.
const float* sinks_of(const Problem& problem, float* memory);

void forward(const KernelCall& call, const Functions& functions);
int64_t forward_workspace(const ir::Graph& graph, const ir::Node& node, int workers,
                          const Functions& functions);
void backward(const KernelCall& call, const Functions& functions);
int64_t backward_workspace(const ir::Graph& graph, const ir::Node& node, int workers,
                           const Functions& functions);

// The fastest functions for a node's type, or for a call's.
const Functions& functions_for(const ir::Graph& graph, const ir::Node& node);
const Functions& functions_for(const KernelCall& call);

}  // namespace autosp::executor::attention

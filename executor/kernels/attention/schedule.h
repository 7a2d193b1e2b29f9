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

// Sizes and padded widths; all else is empty.
Problem problem_of(const reference::AttentionProblem& sizes);

// All operands and results are float32 and no size is too large for the blocks' arithmetic.
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

// A dense [batch, heads, rows, width] array.
Matrix dense(const void* data, int64_t heads, int64_t rows, int64_t width);

// The array with rows padded to whole vectors: itself, or a copy in `memory`.
Matrix padded(const Matrix& from, int64_t batch, int64_t heads, int64_t rows, int64_t width,
              float* memory);
inline int64_t padded_size(int64_t batch, int64_t heads, int64_t rows, int64_t width) {
  const int64_t wide = round_up(width, kLanes);
  return wide == width ? 0 : batch * heads * rows * wide;
}

void forward(const KernelCall& call, const Functions& functions);
int64_t forward_workspace(const ir::Graph& graph, const ir::Node& node, int workers,
                          const Functions& functions);
void backward(const KernelCall& call, const Functions& functions);
int64_t backward_workspace(const ir::Graph& graph, const ir::Node& node, int workers,
                           const Functions& functions);

}  // namespace autosp::executor::attention

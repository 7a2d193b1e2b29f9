// Transpose in tiles, so that both sides are read and written in whole cache lines.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "executor/kernels/rows.h"
#include "reference/element_types.h"
#include "reference/strided_loop.h"

namespace autosp::executor {

namespace {

using reference::StridedLoop;
using reference::Strides;

std::vector<int64_t> permutation_of(const ir::Node& node, size_t rank) {
  std::vector<int64_t> permutation = node.attributes.get_ints("perm");
  if (permutation.empty()) {
    permutation.resize(rank);
    std::iota(permutation.rbegin(), permutation.rend(), 0);
  }
  return permutation;
}

// Rows that stay whole are copied faster by the reference kernel.
bool moves_last_axis(const ir::Graph& graph, const ir::Node& node) {
  const ir::Type& type = graph.type(node.inputs[0]);
  return type.rank() > 1 &&
         permutation_of(node, type.rank()).back() + 1 != static_cast<int64_t>(type.rank());
}

// to[i * to_row + j] = from[j * from_row + i]
template <typename T>
void transpose_matrix(const T* from, int64_t from_row, T* to, int64_t to_row, int64_t rows,
                      int64_t columns) {
  constexpr int64_t kTile = 16;
  for (int64_t i0 = 0; i0 < rows; i0 += kTile) {
    const int64_t i1 = std::min(i0 + kTile, rows);
    for (int64_t j0 = 0; j0 < columns; j0 += kTile) {
      const int64_t j1 = std::min(j0 + kTile, columns);
      for (int64_t i = i0; i < i1; ++i) {
        for (int64_t j = j0; j < j1; ++j) to[i * to_row + j] = from[j * from_row + i];
      }
    }
  }
}

void transpose(const KernelCall& call) {
  const auto& [node, operands, results] = call.call;
  const ir::Shape& x = *operands[0].shape;
  const size_t rank = x.size();
  const std::vector<int64_t> permutation = permutation_of(node, rank);
  const Strides own = reference::row_major_strides(x);
  Strides from(rank);
  for (size_t k = 0; k < rank; ++k) from[k] = own[static_cast<size_t>(permutation[k])];

  // A matrix is transposed for every index of the other axes: the operand's last axis becomes the
  // result's axis `row`; the result's last axis runs over the operand in steps.
  ir::Shape others = *results[0].shape;
  const Strides to = reference::row_major_strides(others);
  const auto row = static_cast<size_t>(
      std::ranges::find(permutation, static_cast<int64_t>(rank) - 1) - permutation.begin());
  const int64_t rows = others[row];
  const int64_t columns = others.back();
  others[row] = std::min<int64_t>(rows, 1);
  others.back() = std::min<int64_t>(columns, 1);
  const StridedLoop<2> loop(others, {from, to});
  reference::visit_bits(operands[0].dtype, [&]<typename T>(std::type_identity<T>) {
    loop.for_each([&](const auto& at) {
      transpose_matrix(static_cast<const T*>(operands[0].data) + at[0], from.back(),
                       static_cast<T*>(results[0].data) + at[1], to[row], rows, columns);
    });
  });
}

constexpr KernelRow kRows[] = {
    {"", "Transpose", moves_last_axis, transpose},
};

}  // namespace

std::span<const KernelRow> movement_rows() { return kRows; }

}  // namespace autosp::executor

#include "cuda/kernels/rows.h"

namespace autosp::kernels {

std::vector<KernelRow> own_rows() {
  std::vector<KernelRow> rows;
  for (const auto part : {unary_rows(), binary_rows(), select_rows(), movement_rows(),
                          indexing_rows(), reduction_rows(), ordering_rows(), normalization_rows(),
                          matmul_rows(), attention_rows(), generator_rows(), optimizer_rows()}) {
    rows.insert(rows.end(), part.begin(), part.end());
  }
  return rows;
}

}  // namespace autosp::kernels

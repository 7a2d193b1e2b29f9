// Matrix products with transposed operands.
#include <numeric>

#include "transforms/canonicalize/microsoft/lowering.h"

namespace autosp::transforms::microsoft {

using ir::Builder;

namespace {

// `batch`: the first axis moves behind the batch axes (d0, d1…, dk) -> (d1…, d0, dk).
// `matrix`: then the last two axes change places.
ValueId transposed(Builder& build, ValueId x, bool matrix, bool batch) {
  const size_t rank = build.rank(x);
  if (rank < 2 || (!matrix && !batch)) return x;
  std::vector<int64_t> permutation(rank);
  std::iota(permutation.begin(), permutation.end(), 0);
  if (batch) std::rotate(permutation.begin(), permutation.begin() + 1, permutation.end() - 1);
  if (matrix) std::swap(permutation[rank - 1], permutation[rank - 2]);
  return build.transpose(x, std::move(permutation));
}

// alpha · A' · B'. A vector operand is a row (A) or a column (B), as in MatMul.
void lower_fused_matmul(const Lowering& lowering) {
  Builder& build = lowering.build();
  const auto flag = [&](const char* name) {
    return lowering.node.attributes.get_int(name, 0) != 0;
  };
  ValueId a = transposed(build, lowering.operand(0), flag("transA"), flag("transBatchA"));
  ValueId b = transposed(build, lowering.operand(1), flag("transB"), flag("transBatchB"));
  if (build.rank(a) == 1) a = build.unsqueeze(a, {0});
  if (build.rank(b) == 1) b = build.unsqueeze(b, {1});
  const double alpha = lowering.node.attributes.get_float("alpha", 1.0F);
  const ValueId product = build.matmul(a, b, alpha == 1.0 ? lowering.name(0) : "");
  lowering.result(0, alpha == 1.0 ? product
                                  : build.binary("Mul", product, build.scalar_like(product, alpha),
                                                 lowering.name(0)));
}

}  // namespace

const std::vector<LoweringRow>& matmul_lowerings() {
  static const std::vector<LoweringRow> kRows = {
      {"FusedMatMul", lower_fused_matmul},
      {"TransposeMatMul", lower_fused_matmul},
  };
  return kRows;
}

}  // namespace autosp::transforms::microsoft

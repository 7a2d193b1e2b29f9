// Rows that see no key of any block, under `dead_rows = uniform`: they weigh all keys alike, masked
// ones too, with 1 / keys. No block's partial result says that, but sums over all keys, and over
// all such rows, do. They are small: [batch, KV heads, 1 or a few widths, width].
//
//   output         = (sum of V) / keys
//   value_gradient = (sum of dO) / keys
//   query_gradient = scale / keys * (dO . (sum of V^T K) - delta * (sum of K))
//   key_gradient   = scale / keys * (V . (sum of dO^T Q) - (sum of delta Q))
//
// where sums over V and K run over all keys and those over dO and Q over these rows, and
// delta = dO . output. The last two only where `dead_row_gradient` says so: there the derivative of
// a weight by a score is that of a softmax whose scores are all equal.
#pragma once

#include <vector>

#include "ir/builder.h"
#include "shard/ring.h"

namespace autosp::transforms {

class UnseenRows {
 public:
  // `operands` are those of autosp::Attention or autosp::AttentionGrad on one rank, its own block
  // of keys and values among them; `keys` counts all.
  UnseenRows(const ir::Node& node, const std::vector<ValueId>& operands, int64_t keys,
             ir::Builder& build);

  // What this rank adds to the sums, in the type to compute in. To be summed over the ring.
  std::vector<ValueId> terms();

  // Attention's output, which is 0 in such rows, with what it is there. `sum` is that of the rows.
  ValueId output(ValueId output, ValueId sum, const std::vector<ValueId>& sums);

  // What such rows add to the gradients of queries, keys and values; invalid where nothing.
  struct Gradients {
    ValueId query;
    ValueId key;
    ValueId value;
  };
  Gradients gradients(const std::vector<ValueId>& sums);

 private:
  ValueId wide(size_t operand);
  ValueId grouped(ValueId x);
  ValueId is_unseen(ValueId sum);
  ValueId total(ValueId x);
  ValueId outer(ValueId a, ValueId b);
  ValueId times(ValueId x, double factor);
  void find_rows();

  const ir::Node& node_;
  const std::vector<ValueId>& operands_;
  double keys_;
  ir::Builder& build_;
  shard::AttentionOperands at_;
  bool is_gradient_;
  bool scores_have_gradient_;
  // Of AttentionGrad, 0 in all other rows; [batch, KV heads, rows, width or 1].
  ValueId query_;
  ValueId output_gradient_;
  ValueId delta_;
};

}  // namespace autosp::transforms

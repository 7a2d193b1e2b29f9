// A member's attention to one block of keys at a time, and how what it makes of the blocks becomes
// the attention to all of them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ir/builder.h"
#include "transforms/ring_attention/ring.h"
#include "transforms/ring_attention/unseen_rows.h"

namespace autosp::transforms {

// The keys and values of a block.
struct RingBlock {
  ValueId key;
  ValueId value;
};

class BlockAttention {
 public:
  // `operands` are those of the whole operator on a rank, its own block of keys and values among
  // them, in the ring's order of positions. Names of what is emitted are those of the whole
  // operator and `suffix`.
  BlockAttention(const SpmdProgram& program, const Compute& compute, const Ring& ring, int64_t rank,
                 const std::vector<ValueId>& operands, std::string suffix, ir::Builder& build);

  // Attends to the block that the rank holds in a step, in steps one after the other. Of a
  // gradient, returns what it adds to the gradients of the block's keys and values, in their type;
  // invalid where nobody asks for it.
  RingBlock attend(size_t step, const RingBlock& block);

  // Adds what another member made of this rank's own block to its gradients.
  void add_home(const RingBlock& gradients);

  // What is to be summed over all members for rows that see no key, before any step; often nothing.
  std::vector<ValueId> unseen_terms();

  // The results of the operator, all blocks together, in the ring's order of positions; invalid
  // where it has none. `unseen` are the sums of unseen_terms().
  std::vector<ValueId> finish(const std::vector<ValueId>& unseen);

 private:
  // Of the queries, over the blocks so far. `output` is in the type to compute in, but for the
  // first block's, which may be all there is.
  struct Partial {
    ValueId output;
    ValueId max;
    ValueId sum;
  };

  void attend_forward(size_t step, const RingBlock& block);
  RingBlock attend_backward(size_t step, const RingBlock& block);
  std::vector<ValueId> emit(size_t step, const RingBlock& block,
                            const std::vector<ir::Type>& types);
  std::vector<ValueId> operands_of(size_t step, const RingBlock& block);
  ValueId interval_bound(ValueId bound, const Positions& keys, bool is_end);
  ValueId run_time_bound(ValueId bound, const Positions& keys);
  ValueId along_keys(ValueId x, int64_t axis, const Positions& keys);
  ValueId finite(ValueId bias, ValueId of_block);
  Partial merged(const Partial& a, const Partial& b);
  // A sum in the type to compute in; `sum` may be invalid.
  ValueId added(ValueId sum, ValueId term);
  void add_unseen(const UnseenRows::Gradients& gradients);
  ValueId result(size_t k, ValueId wide);
  std::string name_of(size_t k) const;

  const SpmdProgram& program_;
  const Compute& compute_;
  const Ring& ring_;
  const RingSchedule& schedule_;
  const ir::Node& node_;
  shard::AttentionOperands at_;
  int64_t rank_;
  size_t member_;
  const std::vector<ValueId>& operands_;
  std::string suffix_;
  ir::Builder& build_;
  std::optional<UnseenRows> unseen_;
  bool has_joint_statistics_ = false;  // of the forward pass (docs/attention.md)
  std::optional<Partial> partial_;     // of Attention
  std::vector<ValueId> sums_;          // of AttentionGrad: by result, in the type to compute in
};

}  // namespace autosp::transforms

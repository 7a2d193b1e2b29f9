// All that is known about one region that will be replaced.
#pragma once

#include <memory>

#include "transforms/fuse_attention/fuse_attention.h"
#include "transforms/fuse_attention/masks.h"
#include "transforms/fuse_attention/verify.h"

namespace autosp::transforms::fusion {

// The mask and bias of one attention, over all its terms. Values are of the cut-out.
struct Visibility {
  std::vector<Literal> literals;
  std::shared_ptr<const KnownIntervals> intervals;  // of all literals that are known
  std::vector<Literal> segments;                    // distinct, and one id can stand for all
  std::vector<BiasPart> biases;
  std::vector<size_t> kept;  // terms that stay values over queries and keys
  double hiding_number = 0;  // what kept masks add where they hide
  bool may_be_dead = false;  // a row may see no key
  std::string description;
};

// Stays where it is: the factors refer to the cut-out.
struct RegionPlan {
  RegionPlan() = default;
  RegionPlan(const RegionPlan&) = delete;

  RegionRoles roles;
  Cutout cutout;
  std::unique_ptr<LocalFactors> factors;
  CanonicalFactors canonical;
  std::vector<Term> terms;
  Meaning meaning;
  std::vector<TermParts> parts;  // by term
  Visibility visibility;
  Verified verified;
  std::optional<reference::AttentionDropout> dropout;
  AttentionRegion report;

  std::optional<size_t> sink_term() const;
  bool has_sink() const;                    // an operand's, or one that is known
  std::optional<size_t> drop_term() const;  // any; all are of one draw
  bool has_backward() const { return cutout.results.size() > 1; }
  ir::DataType dtype(const GraphFacts& facts) const;  // that the scores are computed from
  ValueId root(OperandRole role) const;               // in the whole graph
  std::vector<ValueId> mask_operands() const;         // likewise: what the fused operator reads
};

// Analyses, infers and verifies; refuses what must stay.
std::unique_ptr<RegionPlan> plan_region(const GraphFacts& facts, const Region& region,
                                        MaskMemo& memo);

}  // namespace autosp::transforms::fusion

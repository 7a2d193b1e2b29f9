// The factors of a cut-out region: batch, heads, query and key positions, widths.
#pragma once

#include <unordered_map>

#include "transforms/fuse_attention/cutout.h"

namespace autosp::transforms::fusion {

using shard::AtomId;
using shard::AtomList;

// Factor analysis of a cut-out. Its atoms are local: the index of queries and the index of keys are
// two.
class LocalFactors {
 public:
  // Refuses when an operator's dimensions do not fit together.
  LocalFactors(const GraphFacts& facts, const Cutout& cutout);

  const shard::FactorAnalysis& analysis() const { return analysis_; }
  // Keys before a sink is put beside them and keys after it is cut off again are one atom here:
  // atoms of one class and size.
  const shard::DimAtoms& dims(ValueId inside) const { return dims_[inside.index()]; }
  AtomList atoms(ValueId inside) const;  // of all dimensions, major to minor
  int64_t size(AtomId atom) const { return analysis_.atoms().size(atom); }
  // Atoms that a window relates (keys, and keys with a sink beside them) are one class.
  shard::ClassId class_of(AtomId atom) const { return analysis_.class_of(atom); }
  bool is_home(AtomId atom) const { return home_.contains(atom); }
  bool is_batch(AtomId atom) const { return batch_.contains(atom); }

 private:
  void classify(const GraphFacts& facts, const Cutout& cutout, ValueId inside);

  void unite_windows(const ir::Graph& graph);

  shard::FactorAnalysis analysis_;
  std::vector<shard::DimAtoms> dims_;  // by value
  std::unordered_set<AtomId> home_;
  std::unordered_set<AtomId> batch_;
};

// Which operand of which contraction plays which role, from the shape of the computation alone: the
// key side is the one that is normalised, the scores are what the normalisation is computed from.
RegionRoles find_roles(const GraphFacts& facts, const Region& region);

// The factors of attention, each an ordered list of atoms, major to minor. In full they index
// scores: batch, KV heads, query heads of one KV head, queries, keys.
struct CanonicalFactors {
  AtomList batch;
  AtomList kv_heads;
  AtomList groups;
  AtomList queries;
  AtomList keys;
  AtomList width;           // of queries and keys
  AtomList value_width;     // of values and the output
  AtomList scale_gradient;  // what the gradient of a trained scale is kept over
  AtomList bias_gradient;   // what the gradient of a trained bias is kept over
  AtomList keys_and_sink;   // where scores have one column more, the last: a sink

  AtomList heads() const;  // kv_heads, groups
  AtomList of(OperandRole role) const;
  AtomList of(ResultRole role) const;
  AtomList full() const;
};

// Refuses when an operand or a result has a factor too many or too few.
CanonicalFactors find_canonical_factors(const GraphFacts& facts, const LocalFactors& factors,
                                        const Cutout& cutout, const RegionRoles& roles);

// The cut-out's input that plays this role.
ValueId input_of(const Cutout& cutout, const RegionRoles& roles, OperandRole role);

AtomList concat(std::initializer_list<AtomList> lists);
bool same_atoms(AtomList a, AtomList b);  // in any order

}  // namespace autosp::transforms::fusion

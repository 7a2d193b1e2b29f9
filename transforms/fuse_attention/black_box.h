// A region as a black box: evaluated in float64, at small sizes, on any operands.
//
// Sizes belong to local factors, so the region computes the same at every size. There are fewer
// queries (5) than keys (7), though one sequence has both; shapes that the region names are
// recomputed from factors; numbers that fill a tensor fill a smaller one; and masks are free
// variables: what the graph's own mask is, is another question (masks.h).
#pragma once

#include <map>

#include "transforms/fuse_attention/dropped_weights.h"

namespace autosp::transforms::fusion {

// A dense array with one dimension per atom. Entries of a bool array are 0 and 1.
struct Block {
  AtomList order;
  std::vector<double> values;
};

// Operands of the region other than those of its contractions, uses of one value together.
struct Term {
  std::vector<ValueId> uses;  // in the cut-out
  ValueId root;               // in the whole graph
  AtomList order;             // as in CanonicalFactors::full()
  ir::DataType dtype = ir::DataType::kUndefined;
  std::optional<DropTerm> drop;  // of a term that is drawn at random

  bool is_bool() const { return dtype == ir::DataType::kBool; }
};

// The operands that terms are made of. An operand with a column for the sink is taken apart.
std::vector<TermUse> find_term_uses(const Cutout& cutout, const LocalFactors& factors,
                                    const CanonicalFactors& canonical);

// Constants that tell the sink's column from those of keys are no terms.
bool marks_sink(const GraphFacts& facts, const LocalFactors& factors,
                const CanonicalFactors& canonical, const TermUse& use);

// Refuses a term with a factor that scores lack.
std::vector<Term> find_terms(const GraphFacts& facts, const Cutout& cutout,
                             const LocalFactors& factors, const CanonicalFactors& canonical);

class Sizes {
 public:
  // `square_values`: as many value columns as keys or more, so that values can be an identity.
  Sizes(const CanonicalFactors& canonical, bool square_values);
  explicit Sizes(std::unordered_map<AtomId, int64_t> sizes) : sizes_(std::move(sizes)) {}
  // The graph's own.
  Sizes(const LocalFactors& factors, const CanonicalFactors& canonical);
  int64_t of(AtomId atom) const;  // refuses an atom that is no factor of attention
  int64_t product(const AtomList& atoms) const;

 private:
  std::unordered_map<AtomId, int64_t> sizes_;
};

// The block with its dimensions in this order; dimensions that it lacks are repeated.
Block arranged(const Block& block, const AtomList& order, const Sizes& sizes);

// One operator on tensors of other sizes than the graph's; refuses one without a kernel.
std::vector<ir::Tensor> evaluate_node(const ir::Node& node, const std::vector<ir::Tensor>& operands,
                                      const std::vector<ir::Type>& types);

class BlackBox {
 public:
  BlackBox(const Cutout& cutout, const LocalFactors& factors, const CanonicalFactors& canonical,
           const RegionRoles& roles, const std::vector<Term>& terms, const GraphFacts& facts,
           bool square_values);

  const Sizes& sizes() const { return sizes_; }
  const CanonicalFactors& canonical() const { return *canonical_; }

  // Operands by role, arranged as CanonicalFactors::of says; one block per term. Returns the
  // results that `wanted` names, arranged likewise.
  std::map<ResultRole, Block> run(const std::map<OperandRole, Block>& operands,
                                  const std::vector<Block>& terms,
                                  const std::vector<ResultRole>& wanted) const;

 private:
  ir::Shape shape_of(ValueId inside) const;
  ir::Tensor to_tensor(const Block& block, ValueId inside) const;
  ir::Tensor sink_mark(ValueId use, ValueId root) const;
  ir::Tensor slice_bound(const ir::Node& node, size_t operand) const;
  void check_pad(const ir::Node& node) const;

  const Cutout* cutout_;
  const LocalFactors* factors_;
  const CanonicalFactors* canonical_;
  const RegionRoles* roles_;
  const std::vector<Term>* terms_;
  const GraphFacts* facts_;
  Sizes sizes_;
};

}  // namespace autosp::transforms::fusion

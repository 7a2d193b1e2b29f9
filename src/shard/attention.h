// Where the sequence meets itself, and what may be split there instead. An attention that is one
// operator (docs/attention.md) is such a place by itself; of a decomposed one:
//
// Home is the set of factor classes that hold a tagged sequence dimension. A value with two home
// dimensions (attention scores, masks) cannot stay split by sequence. For each contraction that
// touches such a value, the other factors that are parallel in both operands and the result, major
// to minor, are its alternatives: the KV heads, then the query-head groups. Query positions are
// another: query_positions.h.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "shard/factors.h"
#include "shard/roles.h"

namespace autosp::shard {

using ClassSet = std::set<ClassId>;

struct HomeClasses {
  ClassSet sequence;
  ClassSet batch;
};

// Classes of the tagged dimensions. Where the model merges a tagged dimension with others or
// refines it, its major atom is home. Without tags the sequence is what the softmaxes over
// contractions normalise; where that was made of several dimensions (rows and columns of patches),
// the largest of them, the major one among equals.
HomeClasses find_home(const FactorAnalysis& analysis, const Roles& roles);

// Whether a window over dimensions of several atoms is over these classes on both sides.
bool is_over(const FactorAnalysis& analysis, const Factor& block_window, const ClassSet& classes);

// One kind of split inside attention, the same for every contraction.
struct Alternative {
  ClassSet classes;
  std::set<AtomId>
      atoms;         // of the contractions; of several factors of its classes, these are meant
  int64_t size = 0;  // the smallest extent among its atoms: the most ranks it serves
  bool made_by_expand = false;  // K and V lack it until they are repeated: query-head groups
};

struct AttentionSites {
  std::vector<ValueId> two_home_values;
  std::vector<NodeId> contractions;       // that touch such a value
  std::vector<bool> touches;              // by node: reads or writes such a value
  std::vector<Alternative> alternatives;  // outer to inner
  // Heads where no softmax is, as in the decays between the chunks of a state space model beside
  // attention. They are split along with the KV heads, and bound no number of ranks.
  Alternative unnormalised;
};

AttentionSites find_attention(const FactorAnalysis& analysis, const HomeClasses& home);

// By node, the factors of an alternative.
FactorChoice factors_of(const FactorAnalysis& analysis, const Alternative& alternative);

}  // namespace autosp::shard

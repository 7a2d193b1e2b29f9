// Which factor of an operator inside attention runs over the query positions.
//
// Where the sequence meets itself, both factors may be one atom: scores[b, h, s, s]. Which of the
// two is the query is a relation of its own, between occurrences: a factor of one operator and a
// factor of the next are one occurrence where the value between them has two home dimensions. What
// a normalisation couples (Softmax, the maximum of a row) is the key side; the other side is the
// queries. Split by them, attention needs whole keys and values and leaves sums in their gradients.
#pragma once

#include <vector>

#include "shard/attention.h"
#include "shard/factors.h"

namespace autosp::shard {

// The home factors that run over query positions, of the operators that `sites.touches`. An
// operator both of whose sides are normalised has none. Attention without any normalisation is told
// by its sums: what is added up first is the key side.
FactorChoice find_query_positions(const FactorAnalysis& analysis, const HomeClasses& home,
                                  const AttentionSites& sites);

// Whether any node has a choice.
bool any_choice(const FactorChoice& choice);

}  // namespace autosp::shard

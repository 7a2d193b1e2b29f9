// The numbers of a collective that depend on the length of the sequence (docs/collectives.md):
// lists that are attributes, or, where the length is not known yet, one operand that holds them
// all.
#pragma once

#include <span>
#include <string>

#include "ir/graph.h"

namespace autosp::ir {

// Names of the lists of an operator of the autosp domain, in the order in which its operand 2 holds
// them; none for an operator without such lists.
std::span<const char* const> collective_lists(const std::string& op);

// Makes `numbers`, of operand 2, attributes. `rank` is that of operand 0. Throws Error naming
// `where` when there are not as many as the group and the ranks of operand and result ask for.
void set_collective_lists(const std::string& op, std::span<const int64_t> numbers, size_t rank,
                          const std::string& where, Attributes& attributes);

}  // namespace autosp::ir

// Binds one instruction of an SPMD program to one rank: local shapes, local window bounds, local
// pieces of constants.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ir/builder.h"
#include "reference/attention_problem.h"
#include "transforms/spmd/program.h"

namespace autosp::transforms {

// The part of a placed constant that a rank holds (zeros where it is partial and the rank not
// first).
ir::Tensor local_constant(const SpmdProgram& program, PlacedId id, int64_t rank);

// Whether the rank is the first along each of the axes: the one that keeps a replicated value when
// it becomes partial over them. Axes over which the value was partial before have no say.
bool is_first(const std::vector<size_t>& axes, const shard::Mesh& mesh, int64_t rank);

// Emits the node as the rank executes it. `operands` are the local operands, invalid where the node
// has none or they are not data. Returns its local results, named `name + suffix`.
std::vector<ValueId> emit_local_node(const SpmdProgram& program, const Compute& compute,
                                     int64_t rank, const std::vector<ValueId>& operands,
                                     const std::string& suffix, ir::Builder& build);

// Of attention that drops weights: where the numbers of the rank's own begin, those of the keys
// that it holds among them. nullopt for operators that drop none.
std::optional<reference::AttentionDropout> local_dropout(const SpmdProgram& program,
                                                         const Compute& compute, int64_t rank);

// The part `wanted` of a value of which the box `held` is at hand, both in global indices.
ValueId emit_slice(ir::Builder& build, ValueId x, const std::vector<shard::Interval>& held,
                   const std::vector<shard::Interval>& wanted, const std::string& name);

}  // namespace autosp::transforms

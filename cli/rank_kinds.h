// Ranks that take the same memory need to be looked at once.
#pragma once

#include <vector>

#include "executor/program.h"
#include "transforms/spmd/program.h"

namespace autosp::cli {

// One rank of every kind, in ascending order: ranks of a kind have equal shapes and equal places
// (first, last or between) on every axis of the mesh, and the same one on a ring.
std::vector<int64_t> rank_kinds(const transforms::SpmdProgram& program);

// What the executor would run on a rank.
executor::Program compile_rank(const transforms::SpmdProgram& program, int64_t rank);

}  // namespace autosp::cli

// Per-rank graphs: the SPMD program with one rank's numbers bound, collectives as operators of the
// `autosp` domain.
#pragma once

#include <string>
#include <vector>

#include "transforms/spmd/program.h"

namespace autosp::transforms {

// The graph of one rank. Its inputs and outputs have the original's names; data inputs have the
// rank's slice as their shape.
ir::Graph emit_rank(const SpmdProgram& program, int64_t rank);

// One collective of the program, the same on every rank, in order of execution.
struct CollectiveRecord {
  std::string node;  // name of its node in every rank graph
  StepKind kind = StepKind::kAllToAll;
  std::string value;  // name of the original value
  std::vector<std::string> mesh_axes;
  int64_t group_size = 1;
  int64_t bytes_per_rank = 0;  // sent, by the rank that sends most
  Phase phase = Phase::kForward;
  Purpose purpose = Purpose::kReshard;
};
std::vector<CollectiveRecord> list_collectives(const SpmdProgram& program);

// The name of a move's node.
std::string move_name(const SpmdProgram& program, const Move& move);

}  // namespace autosp::transforms

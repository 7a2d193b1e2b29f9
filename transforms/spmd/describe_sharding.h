// The plan in the words of ONNX's sharding annotations.
#pragma once

#include "ir/sharding.h"
#include "transforms/spmd/program.h"

namespace autosp::transforms {

enum class AnnotatedGraph : uint8_t {
  kWhole,  // the program's
  kRank,   // any rank's: nodes that stand for one of the whole graph
};

// Of every computed node: how the tensors are divided that it reads and makes. What a node reads
// may be divided otherwise than where it was made: data moves in between.
ir::GraphSharding describe_sharding(const SpmdProgram& program, AnnotatedGraph kind);

}  // namespace autosp::transforms

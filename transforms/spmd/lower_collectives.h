// The collectives of a rank graph in the words of another runtime.
//
//   ONNX Runtime (com.microsoft)       AllReduce, AllGather, AllToAll over all ranks
//   TensorRT (DistCollective in "")    all_reduce, all_gather, reduce_scatter, all_to_all, of
//   groups
//
// Both move equal blocks along the first axis; what stands around them here brings the blocks
// there. docs/other_runtimes.md has the table.
#pragma once

#include "ir/graph.h"

namespace autosp::transforms {

enum class CollectiveDialect : uint8_t { kOnnxRuntime, kTensorRt };

// `graph` is a rank's, `ranks` how many there are. Collectives keep their nodes' names. Throws
// Error, naming the node, for what the dialect cannot say: boxes and summed pieces of different
// sizes, element types, and in ONNX Runtime groups of some ranks only.
ir::Graph lower_collectives(const ir::Graph& graph, CollectiveDialect kind, int64_t ranks);

}  // namespace autosp::transforms

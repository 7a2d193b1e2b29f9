// One graph, sharded at several lengths, as one graph for all lengths.
//
// The graphs agree node by node; what differs are numbers. Each becomes a form of the length
// (length_form.h), computed in the graph from the shape of an input where an operator reads it:
// shapes, bounds, sizes of what is exchanged, positions, fills. Whoever reads the graph at a given
// length gets the graph of that length back, number by number; cli/open_sequence.cpp checks it on
// what it has written.
#pragma once

#include <span>
#include <vector>

#include "ir/graph.h"
#include "transforms/open_length/length_form.h"

namespace autosp::transforms {

struct GraphAtLength {
  int64_t units = 0;
  const ir::Graph* graph = nullptr;
};

struct OpenGraph {
  ir::Graph graph;                              // types are those of the first length
  std::vector<std::vector<LengthForm>> shapes;  // by value
};

// At least three lengths, of which the last confirms what the others say; four where products of
// two extents occur. Throws Error naming the node where the graphs differ by more than such
// numbers.
OpenGraph join_lengths(std::span<const GraphAtLength> graphs, const OpenLength& open);

}  // namespace autosp::transforms

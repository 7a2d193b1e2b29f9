// Runs whole graphs on the reference kernels and compares their outputs by name.
#pragma once

#include <map>
#include <string>

#include "ir/graph.h"

namespace autosp::test {

using Tensors = std::map<std::string, ir::Tensor>;  // by input or output name

// Every output of the graph. Each input must be among the feeds; more feeds do no harm.
Tensors run_graph(const ir::Graph& graph, const Tensors& feeds);

// Random feeds for every input: normal numbers for floats (small ones for matrices, to keep
// activations in range), bits for masks, and integers below `num_tokens` for the rest. Inputs
// called labels or targets contain -100 here and there, masks end in zeros, names with "type" are
// below 2.
struct FeedOptions {
  unsigned seed = 1;
  int64_t num_tokens = 8;
};
Tensors random_feeds(const ir::Graph& graph, const FeedOptions& options = {});

// Fails the current test unless both have the same names, types and shapes, and each tensor differs
// by at most `tolerance` times its largest entry (or 1e-4 of the largest entry of all, if that is
// more). Equal infinities count as equal, NaN never.
void expect_close(const Tensors& got, const Tensors& want, double tolerance = 1e-5);

// The same, but NaN in both counts as equal: for operators on operands where they give NaN.
void expect_close_or_nan(const Tensors& got, const Tensors& want, double tolerance = 1e-5);

// How many nodes of the graph are this operator.
size_t count_nodes(const ir::Graph& graph, std::string_view op, std::string_view domain = "");

}  // namespace autosp::test

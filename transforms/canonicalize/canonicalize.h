// The canonical form: what the planner's rules can take apart.
//
// Exporters write one meaning in many ways, and some ways hide the sequence: a gradient of a slice
// as a scatter with a constant index, a mean whose divisor is a local extent on a shard, a fused
// operator that reduces over tokens inside. Each pass here rewrites one such family to operators
// whose factors are plain. Every pass keeps the meaning of the graph; transforms/pipeline.cpp says
// in which order they run.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "ir/graph.h"

namespace autosp::transforms {

// com.microsoft operators of ONNX Runtime's training artifacts become standard operators; gradient
// accumulators are replaced by the gradients, and become the outputs "<parameter>_grad".
ir::Graph lower_microsoft_operators(const ir::Graph& graph);

// SoftmaxCrossEntropyLoss and NegativeLogLikelihoodLoss become sums of numerators over counts.
ir::Graph decompose_losses(const ir::Graph& graph);

// ReduceMean, Mean and the composite reductions become ReduceSum and elementwise operators.
ir::Graph decompose_means(const ir::Graph& graph);

// Convolutions along one axis, without strides, become sums over the taps of their kernels.
ir::Graph decompose_convolutions(const ir::Graph& graph);

struct DrawOptions {
  uint64_t seed = 0;       // of operators without a seed of their own
  std::string step_input;  // a scalar int64 input to add, the number of the step; empty: step 0
};

// Dropout in training, Bernoulli and ONNX's random operators become draws of autosp::RandomUniform
// and elementwise operators. The input is added where anything is drawn.
ir::Graph decompose_random(const ir::Graph& graph, const DrawOptions& options);
ir::Graph decompose_random(const ir::Graph& graph);

// The input that draws read their step from; nullopt where there is none.
std::optional<ValueId> find_step_input(const ir::Graph& graph);

// A softmax of a row less its maximum becomes one of the row; its gradient skips the maximum.
ir::Graph drop_softmax_shifts(const ir::Graph& graph);

// (x + y) / c before a softmax becomes x / c + y / c.
ir::Graph distribute_score_factors(const ir::Graph& graph);

// Nodes with constant operands are evaluated, unless the result has more elements than its operands
// together and a rank above 1: a mask built from two position vectors is never written out.
ir::Graph fold_constants(const ir::Graph& graph);

// Views that change nothing go; Squeeze, Unsqueeze and Flatten become Reshape; chains of Reshape,
// of Transpose and of Expand merge; slices and pads get plain bounds.
ir::Graph simplify_views(const ir::Graph& graph);

// A scatter whose index is a contiguous range becomes Pad.
ir::Graph raise_scatter_to_pad(const ir::Graph& graph);

// Sums of products that are larger than their factors become matrix products.
ir::Graph raise_sums_of_products(const ir::Graph& graph);

// Slices of logits along the positions move up to the operand of the head's product, and the pads
// of their gradient down to that of the operand.
ir::Graph drop_positions_early(const ir::Graph& graph);

// A gather whose index is a contiguous range or a grid of ranges becomes Slice, Reshape, Transpose
// and Expand.
ir::Graph simplify_gathers(const ir::Graph& graph);

// One constant position taken from a computed value becomes a masked sum, and its gradient, a Pad
// from extent 1, a masked broadcast.
ir::Graph select_to_masked_sum(const ir::Graph& graph);

// Split and Concat of unequal parts become Slices and a sum of Pads.
ir::Graph split_to_slices(const ir::Graph& graph);

// Nodes that compute the same from the same operands are computed once. Random operators stay.
ir::Graph eliminate_common_subexpressions(const ir::Graph& graph);

// Gives every reader of an input-independent value its own copy of the nodes that compute it.
// Runs last: merging subexpressions would undo it.
ir::Graph privatize_constant_subgraphs(const ir::Graph& graph);

}  // namespace autosp::transforms

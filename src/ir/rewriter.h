// Builds a new graph from an old one, node by node.
//
//   Rewriter rewriter(graph);
//   for each node:  if it matches, emit what replaces it and `map` its results; else `copy` it
//   return std::move(rewriter).finish();
//
// Inputs and initializers are carried over first; names survive; nodes that nothing needs are
// dropped at the end.
#pragma once

#include <functional>
#include <set>

#include "ir/builder.h"
#include "ir/graph.h"

namespace autosp::ir {

class Rewriter {
 public:
  explicit Rewriter(const Graph& from);

  const Graph& from() const { return *from_; }
  Graph& to() { return to_; }
  Builder& build() { return builder_; }

  // The new value that stands for an old one. Valid for inputs, constants and what was mapped.
  ValueId mapped(ValueId old_value) const;
  std::vector<ValueId> mapped(const std::vector<ValueId>& old_values) const;

  // Declares that `new_value` stands for the result `old_value`.
  void map(ValueId old_value, ValueId new_value);

  // Copies a node with its inputs mapped, or with these values of the new graph as its inputs.
  NodeId copy(const Node& node) { return copy(node, mapped(node.inputs)); }
  NodeId copy(const Node& node, std::vector<ValueId> inputs);

  // Maps the graph outputs, drops dead nodes and constants, verifies.
  Graph finish() &&;

 private:
  const Graph* from_;
  Graph to_;
  Builder builder_;
  std::vector<ValueId> map_;
};

// Applies `rewrite` to every node; a node for which it returns false is copied.
Graph rewrite_nodes(const Graph& graph, const std::function<bool(Rewriter&, const Node&)>& rewrite);

// The graph without nodes and constants that no output needs. Inputs stay, and so do collectives: a
// rank that has no use for a collective's result still takes part in it.
Graph without_dead_nodes(const Graph& graph);

// The graph with other outputs (values of `graph`) and without the named inputs, which nothing may
// need any more. Dead nodes go.
Graph with_interface(const Graph& graph, const std::vector<Output>& outputs,
                     const std::unordered_set<std::string>& dropped_inputs);

// The graph with these initializers as inputs, after those that it has, in the order of its values.
Graph initializers_as_inputs(const Graph& graph, const std::set<std::string>& names);

}  // namespace autosp::ir

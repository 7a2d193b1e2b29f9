#include "executor/absorb_transposes.h"

#include <algorithm>
#include <numeric>

#include "ir/rewriter.h"

namespace autosp::executor {

namespace {

using ir::Graph;
using ir::Node;
using ir::Rewriter;

// The value whose transpose, with the last two axes exchanged, `value` is; or none.
ValueId stored_transpose(const Graph& graph, ValueId value) {
  const Node* producer = graph.producer(value);
  if (producer == nullptr || !producer->is("Transpose")) return {};
  const size_t rank = graph.shape(value).size();
  if (rank < 2) return {};
  std::vector<int64_t> permutation(rank);
  std::iota(permutation.rbegin(), permutation.rend(), 0);  // what no `perm` means
  if (producer->attributes.has("perm")) permutation = producer->attributes.get_ints("perm");
  std::swap(permutation[rank - 2], permutation[rank - 1]);
  return std::ranges::is_sorted(permutation) ? producer->input(0) : ValueId();
}

bool absorb(Rewriter& rewriter, const Node& node, const KernelTable& kernels) {
  const Graph& graph = rewriter.from();
  if (!node.is("MatMul")) return false;
  const ValueId a = stored_transpose(graph, node.input(0));
  const ValueId b = stored_transpose(graph, node.input(1));
  if (!a && !b) return false;
  Node absorbed = node;
  absorbed.domain = ir::kAutospDomain;
  absorbed.inputs = {a ? a : node.input(0), b ? b : node.input(1)};
  if (a) absorbed.attributes.set("transA", int64_t{1});
  if (b) absorbed.attributes.set("transB", int64_t{1});
  if (!kernels.find(graph, absorbed)) return false;
  rewriter.copy(absorbed);
  return true;
}

}  // namespace

std::shared_ptr<const Graph> absorb_transposes(const std::shared_ptr<const Graph>& graph,
                                               const KernelTable& kernels) {
  bool changed = false;
  Graph absorbed = ir::rewrite_nodes(*graph, [&](Rewriter& rewriter, const Node& node) {
    const bool absorbs = absorb(rewriter, node, kernels);
    changed = changed || absorbs;
    return absorbs;
  });
  return changed ? std::make_shared<const Graph>(std::move(absorbed)) : graph;
}

}  // namespace autosp::executor

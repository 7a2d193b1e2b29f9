#include "shard/cut_points.h"

#include <algorithm>
#include <queue>
#include <tuple>

namespace autosp::shard {

namespace {

struct WindowEdge {
  int64_t bytes;
  AtomId to;
  int64_t shift;  // element on the far side = element here + shift
  int64_t block;  // elements of an index here, and there
  int64_t block_there;
};

using WindowEdges = std::map<AtomId, std::vector<WindowEdge>>;

// Windows at one place count together: of a convolution's taps, the one at the padding's own place.
void add_edge(std::vector<WindowEdge>& edges, const WindowEdge& edge) {
  const auto same = std::ranges::find_if(edges, [&](const WindowEdge& known) {
    return known.to == edge.to && known.shift == edge.shift && known.block == edge.block &&
           known.block_there == edge.block_there;
  });
  if (same == edges.end()) {
    edges.push_back(edge);
  } else {
    same->bytes += edge.bytes;
  }
}

WindowEdges window_edges(const FactorAnalysis& analysis, const ClassSet& home) {
  WindowEdges edges;
  const ir::Graph& graph = analysis.graph();
  for (size_t n = 0; n < graph.nodes().size(); ++n) {
    const auto add_window = [&](const Factor& factor) {
      const int64_t bytes = graph.type(graph.nodes()[n].inputs[0]).num_bytes();
      add_edge(edges[factor.atom], {bytes, factor.result_atom, -*factor.window,
                                    factor.operand_block, factor.result_block});
      add_edge(edges[factor.result_atom],
               {bytes, factor.atom, *factor.window, factor.result_block, factor.operand_block});
    };
    const NodeFactors& node = analysis.node(NodeId(n));
    for (const Factor& factor : node.factors) {
      if (factor.window && home.contains(analysis.class_of(factor.atom))) add_window(factor);
    }
    for (const Factor& factor : node.block_windows) {
      if (is_over(analysis, factor, home)) add_window(factor);
    }
  }
  return edges;
}

// What is inside of a block goes to the end of it.
Cuts across(const WindowEdge& edge, const Cuts& cuts, int64_t extent) {
  Cuts result = cuts;
  for (int64_t& cut : result) {
    const int64_t element = std::max<int64_t>(cut * edge.block + edge.shift, 0);
    cut = std::min((element + edge.block_there - 1) / edge.block_there, extent);
  }
  result.front() = 0;
  result.back() = extent;
  return result;
}

}  // namespace

CutPoints choose_cut_points(const FactorAnalysis& analysis, const ClassSet& home,
                            const std::vector<AtomId>& tagged, int64_t parts) {
  CutPoints cuts;
  const auto edges = window_edges(analysis, home);
  // Those of blocks first, which can be cut at no other place; then the heaviest window; among
  // equals, the one found first.
  using Candidate = std::tuple<bool, int64_t, int64_t, AtomId, const WindowEdge*>;
  std::priority_queue<Candidate> frontier;
  int64_t order = 0;
  auto reach = [&](AtomId atom) {
    const auto found = edges.find(atom);
    if (found == edges.end()) return;
    for (const WindowEdge& edge : found->second) {
      const bool of_blocks = edge.block > 1 || edge.block_there > 1;
      frontier.emplace(of_blocks, edge.bytes, --order, atom, &edge);
    }
  };
  auto grow = [&] {
    while (!frontier.empty()) {
      const auto [of_blocks, bytes, rank, from, edge] = frontier.top();
      frontier.pop();
      if (cuts.contains(edge->to)) continue;
      cuts[edge->to] = across(*edge, cuts[from], analysis.atoms().size(edge->to));
      reach(edge->to);
    }
  };
  auto seed = [&](AtomId atom) {
    if (cuts.contains(atom)) return;
    cuts[atom] = even_cuts(analysis.atoms().size(atom), parts);
    reach(atom);
  };
  for (AtomId atom : tagged) seed(atom);
  grow();
  // Home atoms that no window ties to a tagged one.
  for (size_t n = 0; n < analysis.graph().nodes().size(); ++n) {
    for (const Factor& factor : analysis.node(NodeId(n)).factors) {
      if (!home.contains(analysis.class_of(factor.atom))) continue;
      seed(factor.atom);
      grow();
      seed(factor.result_atom);
      grow();
    }
  }
  return cuts;
}

}  // namespace autosp::shard

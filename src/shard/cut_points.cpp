#include "shard/cut_points.h"

#include <algorithm>
#include <queue>
#include <tuple>

namespace autosp::shard {

namespace {

struct WindowEdge {
  int64_t bytes;
  AtomId to;
  int64_t shift;  // index on the far side = index here + shift
};

using WindowEdges = std::map<AtomId, std::vector<WindowEdge>>;

// Windows at one place count together: of a convolution's taps, the one at the padding's own place.
void add_edge(std::vector<WindowEdge>& edges, const WindowEdge& edge) {
  const auto same = std::ranges::find_if(edges, [&](const WindowEdge& known) {
    return known.to == edge.to && known.shift == edge.shift;
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
    for (const Factor& factor : analysis.node(NodeId(n)).factors) {
      if (!factor.window || !home.contains(analysis.class_of(factor.atom))) continue;
      const int64_t bytes = graph.type(graph.nodes()[n].inputs[0]).num_bytes();
      add_edge(edges[factor.atom], {bytes, factor.result_atom, -*factor.window});
      add_edge(edges[factor.result_atom], {bytes, factor.atom, *factor.window});
    }
  }
  return edges;
}

Cuts shifted(const Cuts& cuts, int64_t shift, int64_t extent) {
  Cuts result = cuts;
  for (int64_t& cut : result) cut = std::clamp<int64_t>(cut + shift, 0, extent);
  result.front() = 0;
  result.back() = extent;
  return result;
}

}  // namespace

CutPoints choose_cut_points(const FactorAnalysis& analysis, const ClassSet& home,
                            const std::vector<AtomId>& tagged, int64_t parts) {
  CutPoints cuts;
  const auto edges = window_edges(analysis, home);
  // Heaviest window first; among equals, the one found first.
  using Candidate = std::tuple<int64_t, int64_t, AtomId, const WindowEdge*>;
  std::priority_queue<Candidate> frontier;
  int64_t order = 0;
  auto reach = [&](AtomId atom) {
    const auto found = edges.find(atom);
    if (found == edges.end()) return;
    for (const WindowEdge& edge : found->second) frontier.emplace(edge.bytes, --order, atom, &edge);
  };
  auto grow = [&] {
    while (!frontier.empty()) {
      const auto [bytes, rank, from, edge] = frontier.top();
      frontier.pop();
      if (cuts.contains(edge->to)) continue;
      cuts[edge->to] = shifted(cuts[from], edge->shift, analysis.atoms().size(edge->to));
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

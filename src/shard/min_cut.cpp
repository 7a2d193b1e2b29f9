#include "shard/min_cut.h"

#include <algorithm>
#include <boost/graph/adjacency_list.hpp>
#include <boost/graph/boykov_kolmogorov_max_flow.hpp>
#include <map>
#include <queue>
#include <utility>

namespace autosp::shard {

MinCut::MinCut() = default;

int MinCut::add_vertex() { return num_vertices_++; }

void MinCut::add_edge(int from, int to, int64_t capacity) {
  if (capacity > 0) edges_.push_back({from, to, std::min(capacity, kInfinite)});
}

MinCut::Result MinCut::solve() const {
  using Traits = boost::adjacency_list_traits<boost::vecS, boost::vecS, boost::directedS>;
  using EdgeDescriptor = Traits::edge_descriptor;
  using FlowGraph = boost::adjacency_list<
      boost::vecS, boost::vecS, boost::directedS,
      boost::property<boost::vertex_index_t, long,
                      boost::property<boost::vertex_color_t, boost::default_color_type,
                                      boost::property<boost::vertex_distance_t, long,
                                                      boost::property<boost::vertex_predecessor_t,
                                                                      EdgeDescriptor>>>>,
      boost::property<boost::edge_capacity_t, int64_t,
                      boost::property<boost::edge_residual_capacity_t, int64_t,
                                      boost::property<boost::edge_reverse_t, EdgeDescriptor>>>>;

  // Merge parallel edges, so that every edge has one reverse.
  std::map<std::pair<int, int>, int64_t> capacities;
  for (const Edge& edge : edges_) {
    auto& capacity = capacities[{edge.from, edge.to}];
    capacity = std::min(kInfinite, capacity + edge.capacity);
    capacities.try_emplace({edge.to, edge.from}, 0);
  }
  FlowGraph graph(static_cast<size_t>(num_vertices_));
  auto capacity_of = boost::get(boost::edge_capacity, graph);
  auto reverse_of = boost::get(boost::edge_reverse, graph);
  std::map<std::pair<int, int>, EdgeDescriptor> descriptors;
  for (const auto& [ends, capacity] : capacities) {
    const auto edge =
        boost::add_edge(static_cast<size_t>(ends.first), static_cast<size_t>(ends.second), graph)
            .first;
    capacity_of[edge] = capacity;
    descriptors[ends] = edge;
  }
  for (const auto& [ends, edge] : descriptors)
    reverse_of[edge] = descriptors.at({ends.second, ends.first});

  Result result;
  result.value = boost::boykov_kolmogorov_max_flow(graph, static_cast<size_t>(source()),
                                                   static_cast<size_t>(sink()));
  // What still reaches the sink through residual capacity, walked backwards.
  const auto residual = boost::get(boost::edge_residual_capacity, graph);
  result.on_sink_side.assign(static_cast<size_t>(num_vertices_), false);
  std::queue<size_t> frontier;
  result.on_sink_side[static_cast<size_t>(sink())] = true;
  frontier.push(static_cast<size_t>(sink()));
  while (!frontier.empty()) {
    const size_t at = frontier.front();
    frontier.pop();
    for (auto [edge, end] = boost::out_edges(at, graph); edge != end; ++edge) {
      const size_t before = boost::target(*edge, graph);
      if (result.on_sink_side[before] || residual[reverse_of[*edge]] <= 0) continue;
      result.on_sink_side[before] = true;
      frontier.push(before);
    }
  }
  return result;
}

}  // namespace autosp::shard

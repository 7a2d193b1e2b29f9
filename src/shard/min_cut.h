// Minimum s-t cut with integer capacities (Boost's Boykov-Kolmogorov maximum flow).
#pragma once

#include <cstdint>
#include <vector>

namespace autosp::shard {

class MinCut {
 public:
  static constexpr int64_t kInfinite = int64_t{1} << 60;

  // Vertices are numbered from 0; source and sink are given at construction.
  MinCut();
  int source() const { return 0; }
  int sink() const { return 1; }
  int add_vertex();
  // Capacities of repeated edges add up; a capacity of 0 adds nothing.
  void add_edge(int from, int to, int64_t capacity);

  struct Result {
    int64_t value = 0;
    // By vertex: whether it can still reach the sink. Among minimum cuts this is the one nearest to
    // the sink, so ties fall to the source side.
    std::vector<bool> on_sink_side;
  };
  Result solve() const;

 private:
  struct Edge {
    int from;
    int to;
    int64_t capacity;
  };
  int num_vertices_ = 2;
  std::vector<Edge> edges_;
};

}  // namespace autosp::shard

// Small graphs for tests of passes.
#pragma once

#include <numeric>
#include <string>
#include <utility>

#include "ir/builder.h"
#include "support/run_graph.h"

namespace autosp::test {

// A graph under construction; inputs are float32 unless stated.
struct Example {
  ir::Graph graph;
  ir::Builder build{graph};

  ValueId input(const std::string& name, ir::Shape shape,
                ir::DataType dtype = ir::DataType::kFloat32) {
    return graph.add_input(name, {dtype, std::move(shape)});
  }
  ValueId range(int64_t begin, int64_t end) {
    std::vector<int64_t> values(static_cast<size_t>(end - begin));
    std::iota(values.begin(), values.end(), begin);
    return build.int64s(std::move(values));
  }
  void output(ValueId value) {
    graph.add_output("out" + std::to_string(graph.outputs().size()), value);
  }
};

// The graph after `pass`, having checked that its outputs are the same.
inline ir::Graph apply(const ir::Graph& graph, ir::Graph (*pass)(const ir::Graph&),
                       const FeedOptions& options = {}) {
  ir::Graph after = pass(graph);
  verify(after);
  const Tensors feeds = random_feeds(graph, options);
  expect_close(run_graph(after, feeds), run_graph(graph, feeds));
  return after;
}

}  // namespace autosp::test

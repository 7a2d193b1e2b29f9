#include "support/rank_feeds.h"

#include "transforms/spmd/geometry.h"

namespace autosp::transforms {

test::Tensors rank_feeds(const SpmdProgram& program, const test::Tensors& feeds, int64_t rank) {
  test::Tensors result;
  const ir::Graph& graph = program.graph();
  for (size_t k = 0; k < graph.inputs().size(); ++k) {
    std::vector<int64_t> begin;
    ir::Shape extent;
    for (const auto& range : input_slice(program, program.at(program.inputs[k]), rank)) {
      begin.push_back(range.begin);
      extent.push_back(range.extent());
    }
    const std::string& name = graph.name_of(graph.inputs()[k]);
    result[name] = feeds.at(name).block(begin, extent);
  }
  return result;
}

}  // namespace autosp::transforms

// Integer tensors that are affine in their index, found without evaluating them.
//
// Index grids, position vectors and the guards exporters put around them ("where index < 0 take
// index + n") are built from Range, arithmetic and views. At a long sequence their expansion has
// S·S entries, but each is `offset + sum_k strides[k]·i[k]`: a strided view of the integer line, to
// which views apply as numpy applies them to strided arrays, and whose least and greatest entry
// follow from the strides, which decides most comparisons.
#pragma once

#include <optional>
#include <unordered_map>
#include <vector>

#include "ir/graph.h"

namespace autosp::transforms {

struct Affine {
  ir::Shape shape;
  int64_t offset = 0;
  std::vector<int64_t> strides;  // one per axis; 0 where the extent is 1

  int64_t least() const;
  int64_t greatest() const;
  bool uniform() const;  // all entries equal `offset`
};

class AffineAnalysis {
 public:
  explicit AffineAnalysis(const ir::Graph& graph) : graph_(&graph) {}

  // The affine form of an integer or bool tensor (true is 1), or nullopt when there is none.
  std::optional<Affine> find(ValueId value);

  // The value split along its last axis, of extent q, into q affine tensors over the other axes:
  // the columns of a GatherND or ScatterND index. nullopt when one of them is not affine.
  std::optional<std::vector<Affine>> find_columns(ValueId value);

 private:
  std::optional<Affine> compute(ValueId value);
  std::optional<Affine> compute_elementwise(const ir::Node& node);
  std::optional<Affine> compute_comparison(const ir::Node& node);
  std::optional<Affine> compute_view(const ir::Node& node, const ir::Shape& shape);
  std::optional<Affine> where(const ir::Node& node, const ir::Shape& shape);

  const ir::Graph* graph_;
  std::unordered_map<ValueId, std::optional<Affine>> memo_;
};

}  // namespace autosp::transforms

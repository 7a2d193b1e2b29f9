// Gathers' and slices' gradients, and the training forms of Concat, Split and ReduceSum.
#include <algorithm>
#include <numeric>

#include "transforms/canonicalize/microsoft/lowering.h"

namespace autosp::transforms::microsoft {

using ir::Builder;
using ir::Shape;

namespace {

std::vector<int64_t> iota(int64_t begin, int64_t end) {
  std::vector<int64_t> result(static_cast<size_t>(end - begin));
  std::iota(result.begin(), result.end(), begin);
  return result;
}

// Operands: shape of the data, indices, dY. dY has the index dimensions in place of `axis`; they
// move to the front, rows are added there, and the result's axis moves back.
void lower_gather_grad(const Lowering& lowering) {
  Builder& build = lowering.build();
  const Shape& shape = lowering.result_type(0).shape;
  const ValueId indices = lowering.operand(1);
  const auto axis = static_cast<int64_t>(
      ir::normalize_axis(lowering.node.attributes.get_int("axis", 0), shape.size()));
  const auto num_index = static_cast<int64_t>(build.rank(indices));
  const auto rank = static_cast<int64_t>(build.rank(lowering.operand(2)));
  std::vector<int64_t> forth = iota(axis, axis + num_index);
  const std::vector<int64_t> before = iota(0, axis);
  const std::vector<int64_t> behind = iota(axis + num_index, rank);
  forth.insert(forth.end(), before.begin(), before.end());
  forth.insert(forth.end(), behind.begin(), behind.end());
  std::vector<int64_t> back = iota(1, axis + 1);
  back.push_back(0);
  const std::vector<int64_t> rest = iota(axis + 1, static_cast<int64_t>(shape.size()));
  back.insert(back.end(), rest.begin(), rest.end());

  Shape rows = {shape[static_cast<size_t>(axis)]};
  rows.insert(rows.end(), shape.begin(), shape.begin() + axis);
  rows.insert(rows.end(), shape.begin() + axis + 1, shape.end());
  ValueId updates = lowering.operand(2);
  if (axis != 0) updates = build.transpose(updates, std::move(forth));
  const ValueId sum = build.scatter_nd(build.zeros({lowering.result_type(0).dtype, rows}),
                                       build.unsqueeze(indices, {-1}), updates, "add",
                                       axis == 0 ? lowering.name(0) : "");
  lowering.result(0, axis == 0 ? sum : build.transpose(sum, std::move(back), lowering.name(0)));
}

// Operands: dY, shape of the data, indices.
void lower_gather_elements_grad(const Lowering& lowering) {
  Builder& build = lowering.build();
  lowering.result(
      0, build.scatter_elements(build.zeros(lowering.result_type(0)), lowering.operand(2),
                                lowering.operand(0), lowering.node.attributes.get_int("axis", 0),
                                "add", lowering.name(0)));
}

// Operands: shape of the data, indices, dY. A batch dimension k becomes one more index column,
// which counts along row axis k.
void lower_gather_nd_grad(const Lowering& lowering) {
  Builder& build = lowering.build();
  const ValueId indices = lowering.operand(1);
  Shape rows = build.shape(indices);
  rows.back() = 1;
  std::vector<ValueId> columns;
  for (int64_t k = 0; k < lowering.node.attributes.get_int("batch_dims", 0); ++k) {
    const auto at = static_cast<size_t>(k);
    Shape along(rows.size(), 1);
    along[at] = rows[at];
    const ValueId counter =
        build.constant(ir::Tensor::int64s(iota(0, rows[at])).reshaped(std::move(along)));
    columns.push_back(build.cast(build.expand(counter, rows), build.dtype(indices)));
  }
  columns.push_back(indices);
  lowering.result(0, build.scatter_nd(build.zeros(lowering.result_type(0)),
                                      build.concat(std::move(columns), -1), lowering.operand(2),
                                      "add", lowering.name(0)));
}

struct Range {
  int64_t start;
  int64_t step;
};

// `rows` of `x` put at start, start + step, … of a dimension of `extent`, zeros elsewhere.
ValueId spread(Builder& build, ValueId x, size_t axis, int64_t extent, Range range) {
  const int64_t count = build.shape(x)[axis];
  if (range.step == 1) {
    std::vector<int64_t> before(build.rank(x), 0);
    std::vector<int64_t> after(build.rank(x), 0);
    before[axis] = range.start;
    after[axis] = extent - range.start - count;
    return build.pad(x, before, after);
  }
  std::vector<int64_t> positions;
  for (int64_t k = 0; k < count; ++k) positions.push_back(range.start + k * range.step);
  std::vector<int64_t> swap = iota(0, static_cast<int64_t>(build.rank(x)));
  std::swap(swap[0], swap[axis]);
  const ValueId front = axis == 0 ? x : build.transpose(x, swap);
  Shape shape = build.shape(front);
  shape[0] = extent;
  const ValueId index = build.constant(ir::Tensor::int64s(positions).reshaped({count, 1}));
  const ValueId placed =
      build.scatter_nd(build.zeros({build.dtype(x), shape}), index, front, "none");
  return axis == 0 ? placed : build.transpose(placed, swap);
}

// Operands: dY, shape of the data, starts, ends, axes, steps.
void lower_slice_grad(const Lowering& lowering) {
  Builder& build = lowering.build();
  const Shape& shape = lowering.result_type(0).shape;
  const std::vector<int64_t> starts = lowering.constant_ints(2);
  const std::vector<int64_t> axes =
      lowering.has(4) ? lowering.constant_ints(4) : iota(0, static_cast<int64_t>(starts.size()));
  const std::vector<int64_t> steps =
      lowering.has(5) ? lowering.constant_ints(5) : std::vector<int64_t>(starts.size(), 1);
  ValueId x = lowering.operand(0);
  for (size_t k = 0; k < starts.size(); ++k) {
    const size_t axis = ir::normalize_axis(axes[k], shape.size());
    const int64_t extent = shape[axis];
    const int64_t start = starts[k] < 0 ? starts[k] + extent : starts[k];
    x = spread(build, x, axis, extent,
               {.start = std::clamp<int64_t>(start, 0, steps[k] < 0 ? extent - 1 : extent),
                .step = steps[k]});
  }
  lowering.result(0, x);
}

// Results: the concatenation; the extents of its parts.
void lower_concat_training(const Lowering& lowering) {
  Builder& build = lowering.build();
  const int64_t axis = lowering.node.attributes.get_int("axis", 0);
  std::vector<ValueId> parts;
  std::vector<int64_t> extents;
  for (ValueId input : lowering.node.inputs) {
    parts.push_back(lowering.rewriter.mapped(input));
    const Shape& shape = build.shape(parts.back());
    extents.push_back(shape[ir::normalize_axis(axis, shape.size())]);
  }
  lowering.result(0, build.concat(std::move(parts), axis, lowering.name(0)));
  if (lowering.wants(1)) lowering.result(1, build.int64s(std::move(extents)));
}

// Operands: data, extents (known from the results).
void lower_split_training(const Lowering& lowering) {
  const size_t rank = lowering.build().rank(lowering.operand(0));
  const int64_t axis = lowering.node.attributes.get_int("axis", 0);
  std::vector<int64_t> extents;
  for (size_t k = 0; k < lowering.node.outputs.size(); ++k) {
    extents.push_back(lowering.result_type(k).shape[ir::normalize_axis(axis, rank)]);
  }
  const auto parts = lowering.build().split(lowering.operand(0), extents, axis);
  for (size_t k = 0; k < parts.size(); ++k) lowering.result(k, parts[k]);
}

// Operands: data, axes. The standard operator, which takes its axes the same way.
void lower_reduce_sum_training(const Lowering& lowering) {
  lowering.result(0, lowering.build().node(
                         "ReduceSum", lowering.rewriter.mapped(lowering.node.inputs),
                         lowering.result_type(0), lowering.node.attributes, "", lowering.name(0)));
}

}  // namespace

const std::vector<LoweringRow>& indexing_lowerings() {
  static const std::vector<LoweringRow> kRows = {
      {"GatherGrad", lower_gather_grad},
      {"GatherElementsGrad", lower_gather_elements_grad},
      {"GatherNDGrad", lower_gather_nd_grad},
      {"SliceGrad", lower_slice_grad},
      {"ConcatTraining", lower_concat_training},
      {"SplitTraining", lower_split_training},
      {"ReduceSumTraining", lower_reduce_sum_training},
  };
  return kRows;
}

}  // namespace autosp::transforms::microsoft

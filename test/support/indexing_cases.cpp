// Gathers and scatters, with indices in range (negative ones included).
#include <algorithm>
#include <set>

#include "support/operator_cases.h"

namespace autosp::test {

using ir::DataType;
using ir::Shape;
using ir::Tensor;

namespace {

using Make = CaseBuilder&;

void gather(Make c) {
  const Shape shape = c.shape(1, 3);
  const size_t axis = c.axis_of(shape);
  c.test("Gather", {c.floats(shape), c.integers(c.shape(0, 2), -shape[axis], shape[axis])},
         {{"axis", c.written(axis, shape.size())}});
}

// The index may be smaller than the data along every axis but the indexed one, which is free.
Shape index_shape(Make c, const Shape& data, size_t axis) {
  Shape shape = data;
  for (size_t k = 0; k < shape.size(); ++k) {
    if (k == axis) {
      shape[k] = c.extent();
    } else if (c.integer(0, 2) == 0) {
      shape[k] = c.integer(1, shape[k]);
    }
  }
  return shape;
}

void gather_elements(Make c) {
  const Shape shape = c.shape(1, 3);
  const size_t axis = c.axis_of(shape);
  c.test("GatherElements",
         {c.floats(shape), c.integers(index_shape(c, shape, axis), -shape[axis], shape[axis])},
         {{"axis", c.written(axis, shape.size())}});
}

// Rows of distinct positions along `axis` for a scatter that overwrites; any for one that adds.
void scatter_elements(Make c) {
  const Shape shape = c.shape(1, 3);
  const size_t axis = c.axis_of(shape);
  const bool adds = c.integer(0, 3) != 0;
  const bool zero = adds && c.coin();
  const ValueId data = zero ? c.build().zeros({DataType::kFloat32, shape}) : c.floats(shape);
  Shape rows = index_shape(c, shape, axis);
  if (!adds) rows[axis] = 1;
  c.test(
      "ScatterElements", {data, c.integers(rows, -shape[axis], shape[axis]), c.floats(rows)},
      {{"axis", c.written(axis, shape.size())}, {"reduction", std::string(adds ? "add" : "none")}});
}

// rows... x depth indices into the dimensions of `shape` from `first` on.
Tensor positions(Make c, const Shape& shape, const Shape& rows, size_t first, size_t depth,
                 bool distinct) {
  std::vector<int64_t> entries;
  std::set<std::vector<int64_t>> seen;
  for (int64_t row = 0; row < ir::num_elements(rows); ++row) {
    std::vector<int64_t> entry;
    do {
      entry.clear();
      for (size_t k = 0; k < depth; ++k) entry.push_back(c.integer(0, shape[first + k] - 1));
    } while (distinct && !seen.insert(entry).second);
    entries.insert(entries.end(), entry.begin(), entry.end());
  }
  Shape index = rows;
  index.push_back(static_cast<int64_t>(depth));
  return Tensor::int64s(std::move(entries)).reshaped(std::move(index));
}

void gather_nd(Make c) {
  const Shape shape = c.shape(2, 4);
  const auto batch = static_cast<size_t>(c.integer(0, 1));
  const auto depth = static_cast<size_t>(c.integer(1, static_cast<int64_t>(shape.size() - batch)));
  Shape rows(shape.begin(), shape.begin() + static_cast<int64_t>(batch));
  const Shape more = c.shape(1, 2);
  rows.insert(rows.end(), more.begin(), more.end());
  c.test("GatherND", {c.floats(shape), c.fed(positions(c, shape, rows, batch, depth, false))},
         {{"batch_dims", static_cast<int64_t>(batch)}});
}

void scatter_nd(Make c) {
  const Shape shape = c.shape(2, 4);
  const auto depth = static_cast<size_t>(c.integer(1, static_cast<int64_t>(shape.size())));
  const bool adds = c.integer(0, 3) != 0;
  const bool zero = adds && c.coin();
  int64_t available = 1;
  for (size_t k = 0; k < depth; ++k) available *= shape[k];
  const Shape rows = adds ? c.shape(1, 2) : Shape{c.integer(1, available)};
  const ValueId data = zero ? c.build().zeros({DataType::kFloat32, shape}) : c.floats(shape);
  Shape updates = rows;
  updates.insert(updates.end(), shape.begin() + static_cast<int64_t>(depth), shape.end());
  c.test("ScatterND", {data, c.fed(positions(c, shape, rows, 0, depth, !adds)), c.floats(updates)},
         {{"reduction", std::string(adds ? "add" : "none")}});
}

void one_hot(Make c) {
  const Shape shape = c.shape(1, 2);
  const int64_t depth = c.extent();
  const auto rank = static_cast<int64_t>(shape.size());
  const std::vector<float> values = {-1, 2};
  c.test("OneHot",
         {c.integers(shape, -depth, depth),
          c.build().scalar(DataType::kInt64, static_cast<double>(depth)),
          c.build().constant(Tensor::from_values<float>({2}, values))},
         {{"axis", c.integer(-rank - 1, rank)}});
}

}  // namespace

CaseMakers indexing_cases() {
  return {{"Gather", gather},        {"GatherElements", gather_elements},
          {"GatherND", gather_nd},   {"ScatterElements", scatter_elements},
          {"ScatterND", scatter_nd}, {"OneHot", one_hot}};
}

}  // namespace autosp::test

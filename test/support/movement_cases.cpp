// Operators that move elements: views, transposes, windows, joins, fills.
#include <algorithm>
#include <numeric>

#include "support/operator_cases.h"

namespace autosp::test {

using ir::DataType;
using ir::Shape;

namespace {

using Make = CaseBuilder&;

// Joins some neighbouring extents.
Shape joined(Make c, const Shape& atoms) {
  Shape shape;
  for (int64_t atom : atoms) {
    if (!shape.empty() && c.coin()) {
      shape.back() *= atom;
    } else {
      shape.push_back(atom);
    }
  }
  return shape;
}

void reshape(Make c) {
  const Shape atoms = c.shape(2, 4);
  const Shape to = joined(c, atoms);
  c.test("Reshape", {c.floats(joined(c, atoms)), c.build().int64s(to)},
         {{"allowzero", int64_t{1}}});
}

void squeeze(Make c) {
  Shape shape = c.shape(1, 3);
  const size_t axis = c.axis_of(shape);
  shape[axis] = 1;
  c.test("Squeeze", {c.floats(shape), c.build().int64s({c.written(axis, shape.size())})});
}

void unsqueeze(Make c) {
  const Shape shape = c.shape(1, 3);
  const auto rank = static_cast<int64_t>(shape.size());
  c.test("Unsqueeze", {c.floats(shape), c.build().int64s({c.integer(0, rank)})});
}

void flatten(Make c) {
  const Shape shape = c.shape(1, 4);
  c.test("Flatten", {c.floats(shape)}, {{"axis", static_cast<int64_t>(c.axis_of(shape))}});
}

void transpose(Make c) {
  const Shape shape = c.shape(2, 4);
  std::vector<int64_t> permutation(shape.size());
  std::iota(permutation.begin(), permutation.end(), 0);
  for (size_t k = permutation.size(); k-- > 1;) {
    std::swap(permutation[k],
              permutation[static_cast<size_t>(c.integer(0, static_cast<int64_t>(k)))]);
  }
  c.test("Transpose", {c.floats(shape)}, {{"perm", permutation}});
}

void expand(Make c) {
  const Shape result = c.shape(1, 4);
  c.test("Expand", {c.floats(c.broadcastable_to(result)), c.build().int64s(result)});
}

void slice(Make c) {
  const Shape shape = c.shape(1, 3);
  std::vector<int64_t> begins;
  std::vector<int64_t> ends;
  std::vector<int64_t> axes;
  std::vector<int64_t> steps;
  for (size_t k = 0; k < shape.size(); ++k) {
    if (c.coin()) continue;
    const int64_t begin = c.integer(0, shape[k] - 1);
    begins.push_back(c.coin() ? begin - shape[k] : begin);
    ends.push_back(c.coin() ? INT64_MAX : c.integer(begin + 1, shape[k]));
    axes.push_back(c.written(k, shape.size()));
    steps.push_back(c.one_of<int64_t>({1, 1, 1, 2}));
  }
  if (axes.empty()) {
    begins = {shape[0] / 2};
    ends = {shape[0]};
    axes = {0};
    steps = {1};
  }
  std::vector<ValueId> inputs = {c.floats(shape), c.build().int64s(begins), c.build().int64s(ends),
                                 c.build().int64s(axes)};
  if (std::ranges::any_of(steps, [](int64_t step) { return step != 1; }) || c.coin()) {
    inputs.push_back(c.build().int64s(steps));
  }
  c.test("Slice", inputs);
}

void pad(Make c) {
  const Shape shape = c.shape(1, 3);
  const std::string mode = c.one_of<std::string>({"constant", "constant", "constant", "edge"});
  std::vector<int64_t> pads;
  for (size_t k = 0; k < 2 * shape.size(); ++k) pads.push_back(c.coin() ? 0 : c.integer(0, 4));
  std::vector<ValueId> inputs = {c.floats(shape), c.build().int64s(pads)};
  if (c.coin()) inputs.push_back(c.build().scalar(DataType::kFloat32, c.coin() ? 0 : 2));
  c.test("Pad", inputs, {{"mode", mode}});
}

// Extents of two to four parts of a dimension, equal in half of the cases.
std::vector<int64_t> parts(Make c) {
  std::vector<int64_t> sizes(static_cast<size_t>(c.integer(2, 4)), c.integer(1, 5));
  if (c.coin()) {
    for (int64_t& size : sizes) size = c.integer(1, 5);
  }
  return sizes;
}

void split(Make c) {
  Shape shape = c.shape(1, 3);
  const size_t axis = c.axis_of(shape);
  const std::vector<int64_t> sizes = parts(c);
  shape[axis] = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  c.test("Split", {c.floats(shape), c.build().int64s(sizes)},
         {{"axis", c.written(axis, shape.size())}}, sizes.size());
}

void concat(Make c) {
  Shape shape = c.shape(1, 3);
  const size_t axis = c.axis_of(shape);
  std::vector<ValueId> inputs;
  for (int64_t size : parts(c)) {
    shape[axis] = size;
    inputs.push_back(c.floats(shape));
  }
  c.test("Concat", inputs, {{"axis", c.written(axis, shape.size())}});
}

void tile(Make c) {
  const Shape shape = c.shape(1, 3);
  std::vector<int64_t> repeats;
  for (size_t k = 0; k < shape.size(); ++k) repeats.push_back(c.integer(1, 3));
  c.test("Tile", {c.floats(shape), c.build().int64s(repeats)});
}

void constant_of_shape(Make c) {
  c.test("ConstantOfShape", {c.build().int64s(c.shape(1, 3))},
         {{"value", ir::Tensor::filled({DataType::kFloat32, {1}}, 3)}});
}

void range(Make c) {
  const auto scalar = [&](int64_t value) {
    return c.build().scalar(DataType::kInt64, static_cast<double>(value));
  };
  const int64_t start = c.integer(-5, 5);
  const int64_t step = c.integer(1, 3);
  c.test("Range", {scalar(start), scalar(start + step * c.integer(2, 9)), scalar(step)});
}

void trilu(Make c) {
  const auto diagonal = static_cast<double>(c.integer(-2, 2));
  c.test("Trilu", {c.floats(c.shape(2, 4)), c.build().scalar(DataType::kInt64, diagonal)},
         {{"upper", int64_t{c.coin()}}});
}

CaseMaker draw(const std::string& op) {
  return [op](Make c) {
    const Shape shape = c.shape(1, 3);
    if (op.ends_with("Like")) return c.test(op, {c.floats(shape)}, {{"seed", 1.0F}});
    c.test(op, {}, {{"shape", std::vector<int64_t>(shape)}, {"seed", 1.0F}});
  };
}

void draw_by_place(Make c) {
  std::vector<ValueId> step;
  if (c.coin()) step = {c.integers({}, 0, 1000)};
  c.test("autosp::RandomUniform", step,
         {{"shape", std::vector<int64_t>(c.shape(1, 4))},
          {"seed", c.integer(0, 1000)},
          {"stream", c.integer(0, 1000)}});
}

}  // namespace

CaseMakers movement_cases() {
  CaseMakers makers = {{"Reshape", reshape},
                       {"Squeeze", squeeze},
                       {"Unsqueeze", unsqueeze},
                       {"Flatten", flatten},
                       {"Transpose", transpose},
                       {"Expand", expand},
                       {"Slice", slice},
                       {"Pad", pad},
                       {"Split", split},
                       {"Concat", concat},
                       {"Tile", tile},
                       {"ConstantOfShape", constant_of_shape},
                       {"Range", range},
                       {"Trilu", trilu},
                       {"autosp::RandomUniform", draw_by_place}};
  for (const char* op :
       {"RandomUniform", "RandomNormal", "RandomUniformLike", "RandomNormalLike"}) {
    makers[op] = draw(op);
  }
  return makers;
}

}  // namespace autosp::test

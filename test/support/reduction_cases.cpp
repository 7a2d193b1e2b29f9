// Operators in which elements meet: contractions, softmax, norms, reductions, scans, sorts.
#include "support/operator_cases.h"

namespace autosp::test {

using ir::DataType;
using ir::Shape;

namespace {

using Make = CaseBuilder&;

void matmul(Make c) {
  const Shape batch = c.shape(0, 2);
  const int64_t k = c.extent();
  const auto operand = [&](Shape lead, int64_t rows, int64_t columns) {
    lead.push_back(rows);
    lead.push_back(columns);
    return c.floats(lead);
  };
  const bool vector_left = c.integer(0, 5) == 0;
  const bool vector_right = c.integer(0, 5) == 0;
  const ValueId left = vector_left ? c.floats({k}) : operand(batch, c.extent(), k);
  const ValueId right =
      vector_right ? c.floats({k}) : operand(c.broadcastable_to(batch), k, c.extent());
  c.test("MatMul", {left, right});
}

void gemm(Make c) {
  const int64_t m = c.extent();
  const int64_t n = c.extent();
  const int64_t k = c.extent();
  const bool trans_a = c.coin();
  const bool trans_b = c.coin();
  std::vector<ValueId> inputs = {c.floats(trans_a ? Shape{k, m} : Shape{m, k}),
                                 c.floats(trans_b ? Shape{n, k} : Shape{k, n})};
  if (c.coin()) inputs.push_back(c.floats(c.broadcastable_to({m, n})));
  c.test("Gemm", inputs,
         {{"transA", int64_t{trans_a}},
          {"transB", int64_t{trans_b}},
          {"alpha", 0.5F},
          {"beta", 2.0F}});
}

void conv(Make c) {
  const int64_t groups = c.one_of<int64_t>({1, 1, 2});
  const int64_t in = groups * c.integer(1, 4);
  const int64_t out = groups * c.integer(1, 4);
  std::vector<ValueId> inputs = {c.floats({c.integer(1, 5), in, c.integer(3, 8)}),
                                 c.floats({out, in / groups, 3})};
  if (c.coin()) inputs.push_back(c.floats({out}));
  c.test("Conv", inputs, {{"group", groups}, {"pads", std::vector<int64_t>{1, 1}}});
}

void conv_transpose(Make c) {
  const int64_t groups = c.one_of<int64_t>({1, 1, 2});
  const int64_t in = groups * c.integer(1, 4);
  const int64_t out = c.integer(1, 4);
  std::vector<ValueId> inputs = {c.floats({c.integer(1, 5), in, c.integer(3, 8)}),
                                 c.floats({in, out, 3})};
  if (c.coin()) inputs.push_back(c.floats({groups * out}));
  c.test("ConvTranspose", inputs,
         {{"group", groups},
          {"strides", std::vector<int64_t>{c.integer(1, 2)}},
          {"pads", std::vector<int64_t>{1, 0}}});
}

CaseMaker along_axis(const std::string& op) {
  return [op](Make c) {
    const Shape shape = c.shape(1, 4);
    const int64_t axis = c.written(c.axis_of(shape), shape.size());
    c.test(op, {c.floats(shape)}, {{"axis", axis}});
  };
}

void layer_normalization(Make c) {
  const Shape shape = c.shape(2, 4);
  const size_t axis = c.axis_of(shape);
  const Shape normalized(shape.begin() + static_cast<int64_t>(axis), shape.end());
  std::vector<ValueId> inputs = {c.floats(shape), c.floats(normalized)};
  if (c.coin()) inputs.push_back(c.floats(normalized));
  c.test("LayerNormalization", inputs, {{"axis", c.written(axis, shape.size())}},
         c.one_of<size_t>({1, 3}));
}

CaseMaker reduction(const std::string& op) {
  return [op](Make c) {
    const Shape shape = c.shape(1, 4);
    std::vector<int64_t> axes;
    for (size_t k = 0; k < shape.size(); ++k) {
      if (c.coin()) axes.push_back(c.written(k, shape.size()));
    }
    if (axes.empty()) axes.push_back(0);
    c.test(op, {c.floats(shape), c.build().int64s(axes)}, {{"keepdims", int64_t{c.coin()}}});
  };
}

CaseMaker arg_reduction(const std::string& op) {
  return [op](Make c) {
    const Shape shape = c.shape(1, 4);
    const int64_t axis = c.written(c.axis_of(shape), shape.size());
    c.test(op, {c.floats(shape)}, {{"axis", axis}, {"keepdims", int64_t{c.coin()}}});
  };
}

void cumulative_sum(Make c) {
  const Shape shape = c.shape(1, 3);
  const auto axis = static_cast<double>(c.written(c.axis_of(shape), shape.size()));
  c.test("CumSum", {c.floats(shape), c.build().scalar(DataType::kInt64, axis)},
         {{"exclusive", int64_t{c.coin()}}, {"reverse", int64_t{c.coin()}}});
}

void top_k(Make c) {
  const Shape shape = c.shape(1, 3);
  const size_t axis = c.axis_of(shape);
  c.test("TopK", {c.floats(shape), c.build().int64s({c.integer(1, shape[axis])})},
         {{"axis", c.written(axis, shape.size())}}, 2);
}

}  // namespace

CaseMakers reduction_cases() {
  CaseMakers makers = {{"MatMul", matmul},
                       {"Gemm", gemm},
                       {"Conv", conv},
                       {"ConvTranspose", conv_transpose},
                       {"LayerNormalization", layer_normalization},
                       {"CumSum", cumulative_sum},
                       {"TopK", top_k}};
  for (const char* op : {"Softmax", "LogSoftmax"}) makers[op] = along_axis(op);
  for (const char* op : {"ArgMax", "ArgMin"}) makers[op] = arg_reduction(op);
  for (const char* op :
       {"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
        "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"}) {
    makers[op] = reduction(op);
  }
  return makers;
}

}  // namespace autosp::test

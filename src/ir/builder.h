// Appends standard operators to a graph, computing their result types.
//
// Every function returns the (first) result. Shapes follow ONNX; extents that depend on data are
// not supported. Axes may be negative. `name` is a hint for the result.
#pragma once

#include <span>

#include "ir/graph.h"

namespace autosp::ir {

class Builder {
 public:
  explicit Builder(Graph& graph) : graph_(&graph) {}

  Graph& graph() { return *graph_; }
  const Shape& shape(ValueId x) const { return graph_->shape(x); }
  DataType dtype(ValueId x) const { return graph_->type(x).dtype; }
  size_t rank(ValueId x) const { return graph_->shape(x).size(); }

  // Any operator; the caller states the result types.
  ValueId node(std::string op, std::vector<ValueId> inputs, Type result, Attributes attributes = {},
               std::string domain = "", std::string name = "");
  std::vector<ValueId> node(std::string op, std::vector<ValueId> inputs, std::vector<Type> results,
                            Attributes attributes = {}, std::string domain = "",
                            std::vector<std::string> names = {});

  ValueId constant(Tensor tensor, std::string_view name = "") {
    return graph_->add_constant(std::move(tensor), name);
  }
  ValueId scalar(DataType dtype, double value) { return constant(Tensor::scalar(dtype, value)); }
  ValueId scalar_like(ValueId x, double value) { return scalar(dtype(x), value); }
  ValueId int64s(std::vector<int64_t> values) {
    return constant(Tensor::int64s(std::move(values)));
  }

  // Elementwise: Neg, Exp, Sqrt, ... ; Add, Mul, ... with broadcasting; comparisons give bool.
  ValueId unary(const std::string& op, ValueId x, std::string name = "");
  ValueId binary(const std::string& op, ValueId a, ValueId b, std::string name = "");
  ValueId sum(std::vector<ValueId> terms, std::string name = "");  // one term: that term
  ValueId where(ValueId condition, ValueId a, ValueId b, std::string name = "");
  ValueId cast(ValueId x, DataType to, std::string name = "");  // no node when already of that type
  ValueId identity(ValueId x, std::string name = "") {
    return unary("Identity", x, std::move(name));
  }

  ValueId matmul(ValueId a, ValueId b, std::string name = "");
  ValueId reduce(const std::string& op, ValueId x, std::vector<int64_t> axes, bool keepdims,
                 std::string name = "");
  ValueId reduce_sum(ValueId x, std::vector<int64_t> axes, bool keepdims, std::string name = "") {
    return reduce("ReduceSum", x, std::move(axes), keepdims, std::move(name));
  }
  ValueId softmax(const std::string& op, ValueId x, int64_t axis,
                  std::string name = "");  // or LogSoftmax

  ValueId transpose(ValueId x, std::vector<int64_t> permutation, std::string name = "");
  // By value: the shape of a value of this graph would move with it when the graph grows.
  ValueId reshape(ValueId x, Shape to, std::string name = "");  // no node when nothing changes
  ValueId squeeze(ValueId x, std::vector<int64_t> axes, std::string name = "");
  ValueId unsqueeze(ValueId x, std::vector<int64_t> axes, std::string name = "");
  ValueId expand(ValueId x, Shape to, std::string name = "");  // no node when nothing changes
  ValueId slice(ValueId x, int64_t axis, int64_t begin, int64_t end, std::string name = "");
  // begins[k]..ends[k] along axis k, for every axis; steps 1. No node when nothing is cut.
  ValueId slice_all(ValueId x, const std::vector<int64_t>& begins, const std::vector<int64_t>& ends,
                    std::string name = "");
  // Zero padding; before and after hold one count per axis.
  ValueId pad(ValueId x, const std::vector<int64_t>& before, const std::vector<int64_t>& after,
              std::string name = "");
  ValueId concat(std::vector<ValueId> parts, int64_t axis,
                 std::string name = "");  // one part: that part
  std::vector<ValueId> split(ValueId x, const std::vector<int64_t>& sizes, int64_t axis,
                             const std::string& name = "");

  ValueId gather(ValueId data, ValueId indices, int64_t axis, std::string name = "");
  ValueId gather_elements(ValueId data, ValueId indices, int64_t axis, std::string name = "");
  // reduction: "none" or "add"
  ValueId scatter_nd(ValueId data, ValueId indices, ValueId updates, const std::string& reduction,
                     std::string name = "");
  ValueId scatter_elements(ValueId data, ValueId indices, ValueId updates, int64_t axis,
                           const std::string& reduction, std::string name = "");
  ValueId zeros(Type type, std::string name = "");  // ConstantOfShape: costs no file space

 private:
  Graph* graph_;
};

}  // namespace autosp::ir

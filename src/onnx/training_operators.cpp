// Result types of the operators of ONNX Runtime's training graphs. They have no schema in libonnx.
//
// Each is a row: for every result, which operand it resembles or how its type follows.
#include <functional>
#include <unordered_map>

#include "onnx/operation.h"

namespace autosp::onnx_io {

namespace {

using ir::DataType;
using ir::Shape;
using ir::Type;
using MaybeType = std::optional<Type>;

struct Context {
  const ir::Graph& graph;
  const Operation& operation;

  const Type& type(size_t k) const {
    if (!operation.input(k)) {
      throw Error("node '{}' lacks its operand {}", operation.describe(), k);
    }
    return graph.type(operation.inputs[k]);
  }
  DataType dtype(size_t k) const { return type(k).dtype; }
  const Shape& shape(size_t k) const { return type(k).shape; }
  std::optional<Shape> ints(size_t k) const { return graph.constant_ints(operation.input(k)); }
  int64_t attribute(const std::string& name, int64_t otherwise) const {
    return operation.attributes.get_int(name, otherwise);
  }
};

// One result; a row has one for each.
using Result = std::function<MaybeType(const Context&)>;

Result like(size_t operand) {
  return [operand](const Context& c) { return MaybeType(c.type(operand)); };
}

// A tensor of the shape that operand `shape` holds, of operand `dtype`'s element type.
Result shaped_by(size_t shape, size_t dtype) {
  return [=](const Context& c) -> MaybeType {
    const auto extents = c.ints(shape);
    return extents ? MaybeType(Type{c.dtype(dtype), *extents}) : std::nullopt;
  };
}

Result fixed(DataType dtype, Shape shape) {
  return [=](const Context&) { return MaybeType(Type{dtype, shape}); };
}

Result broadcast_of_first_two() {
  return [](const Context& c) {
    return MaybeType(Type{c.dtype(0), ir::broadcast(c.shape(0), c.shape(1))});
  };
}

// The saved statistics of a normalization over the axes from `axis` on: those extents become 1.
Result statistics() {
  return [](const Context& c) {
    Type type = c.type(0);
    const size_t axis = ir::normalize_axis(c.attribute("axis", -1), type.rank());
    for (size_t k = axis; k < type.rank(); ++k) type.shape[k] = 1;
    if (type.dtype != DataType::kFloat64) type.dtype = DataType::kFloat32;
    return MaybeType(std::move(type));
  };
}

MaybeType fused_matmul(const Context& c) {
  if (c.attribute("transBatchA", 0) != 0 || c.attribute("transBatchB", 0) != 0) {
    throw Error("node '{}' transposes batch dimensions, which is not supported",
                c.operation.describe());
  }
  Shape a = c.shape(0);
  Shape b = c.shape(1);
  if (a.size() < 2 || b.size() < 2) {
    throw Error("node '{}' multiplies {} by {}; both must have rank 2 or more",
                c.operation.describe(), ir::to_string(a), ir::to_string(b));
  }
  if (c.attribute("transA", 0) != 0) std::swap(a[a.size() - 1], a[a.size() - 2]);
  if (c.attribute("transB", 0) != 0) std::swap(b[b.size() - 1], b[b.size() - 2]);
  const int64_t rows = a[a.size() - 2];
  const int64_t columns = b.back();
  if (a.back() != b[b.size() - 2]) {
    throw Error("node '{}' multiplies {} by {}: {} is not {}", c.operation.describe(),
                ir::to_string(c.type(0)), ir::to_string(c.type(1)), a.back(), b[b.size() - 2]);
  }
  a.resize(a.size() - 2);
  b.resize(b.size() - 2);
  Shape result = ir::broadcast(a, b);
  result.insert(result.end(), {rows, columns});
  return Type{c.dtype(0), std::move(result)};
}

MaybeType concatenation(const Context& c) {
  Type type = c.type(0);
  const size_t axis = ir::normalize_axis(c.attribute("axis", 0), type.rank());
  for (size_t k = 1; k < c.operation.inputs.size(); ++k) type.shape[axis] += c.shape(k)[axis];
  return type;
}

MaybeType lengths(const Context& c) {
  return Type{DataType::kInt64, {static_cast<int64_t>(c.operation.inputs.size())}};
}

std::vector<MaybeType> split(const Context& c) {
  std::vector<MaybeType> types(c.operation.results.size());
  const size_t axis = ir::normalize_axis(c.attribute("axis", 0), c.type(0).rank());
  const auto sizes = c.ints(1);
  if (!sizes || sizes->size() != types.size()) return types;
  for (size_t k = 0; k < types.size(); ++k) {
    types[k] = c.type(0);
    types[k]->shape[axis] = (*sizes)[k];
  }
  return types;
}

// The loss is a scalar unless it is left per label.
MaybeType loss(const Context& c) {
  const bool per_label = c.operation.attributes.get_string("reduction", "mean") == "none";
  return Type{c.dtype(0), per_label ? c.shape(1) : Shape{}};
}

using Rows = std::unordered_map<std::string, std::vector<Result>>;

const Rows& rows() {
  static const Rows table = {
      {"FusedMatMul", {fused_matmul}},
      {"TransposeMatMul", {fused_matmul}},
      {"SoftmaxGrad", {like(0)}},
      {"SoftmaxGrad_13", {like(0)}},
      {"LogSoftmaxGrad", {like(0)}},
      {"LogSoftmaxGrad_13", {like(0)}},
      {"SimplifiedLayerNormalization", {like(0), statistics()}},
      {"LayerNormalizationGrad", {like(1), like(2), like(2)}},
      {"SimplifiedLayerNormalizationGrad", {like(1), like(2)}},
      {"SoftmaxCrossEntropyLossInternal", {loss, like(0)}},
      {"SoftmaxCrossEntropyLossGrad", {like(1)}},
      {"SoftmaxCrossEntropyLossInternalGrad", {like(1)}},
      {"GatherGrad", {shaped_by(0, 2)}},
      {"GatherElementsGrad", {shaped_by(1, 0)}},
      {"GatherNDGrad", {shaped_by(0, 2)}},
      {"SliceGrad", {shaped_by(1, 0)}},
      {"ConcatTraining", {concatenation, lengths}},
      {"Gelu", {like(0)}},
      {"GeluGrad", {like(1)}},
      {"FastGelu", {like(0)}},
      {"FastGeluGrad", {like(1)}},
      {"QuickGelu", {like(0)}},
      {"QuickGeluGrad", {like(1)}},
      {"BiasGelu", {broadcast_of_first_two()}},
      {"BiasGeluGrad_dX", {like(1)}},
      {"BiasFastGeluGrad_dX", {like(1)}},
      {"ReluGrad", {like(0)}},
      {"SigmoidGrad", {like(0)}},
      {"TanhGrad", {like(0)}},
      {"DropoutGrad", {like(0)}},
      {"Scale", {like(0)}},
      {"InPlaceAccumulator", {like(0)}},
      {"InPlaceAccumulatorV2", {fixed(DataType::kBool, {1}), like(0)}},
      {"ZeroGradient", {like(0)}},
  };
  return table;
}

}  // namespace

std::optional<std::vector<MaybeType>> infer_training_operator(const ir::Graph& graph,
                                                              const Operation& operation) {
  // ONNX Runtime puts this one operator into the standard domain.
  const bool guest = operation.is("SimplifiedLayerNormalization");
  if (operation.domain != ir::kMicrosoftDomain && !guest) return std::nullopt;
  const Context context{graph, operation};
  if (operation.op == "SplitTraining") return split(context);
  const auto found = rows().find(operation.op);
  if (found == rows().end()) return std::nullopt;
  std::vector<MaybeType> types(operation.results.size());
  for (size_t k = 0; k < types.size(); ++k) {
    if (!operation.has_result(k)) continue;
    if (k >= found->second.size()) {
      throw Error("node '{}' has {} results; the operator has {}", operation.describe(),
                  operation.results.size(), found->second.size());
    }
    types[k] = found->second[k](context);
  }
  return types;
}

}  // namespace autosp::onnx_io

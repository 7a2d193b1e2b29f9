// Result types of the operators of ONNX Runtime's training graphs. They have no schema in libonnx.
//
// Each is a row: for every result, which operand it resembles or how its type follows.
#include <algorithm>
#include <functional>
#include <numeric>
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
      throw Error("node '{}' lacks its operand {}", operation.describe(), k)
          .note(fmt::format("it has {} operands", operation.inputs.size()))
          .help("make the training artifacts of ONNX Runtime again: this node is damaged");
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

[[noreturn]] void refuse(const Context& c, const std::string& what) {
  std::string operands;
  for (size_t k = 0; k < c.operation.inputs.size(); ++k) {
    if (!operands.empty()) operands += ", ";
    operands += c.operation.input(k)
                    ? fmt::format("'{}' {}", c.graph.name_of(c.operation.inputs[k]),
                                  ir::to_string(c.type(k)))
                    : "(none)";
  }
  throw Error("node '{}' is not valid: {}", c.operation.describe(), what)
      .note("its operands are " + operands)
      .help("make the training artifacts of ONNX Runtime again: these do not fit together");
}

bool broadcasts(const Shape& a, const Shape& b) {
  for (size_t k = 0; k < std::min(a.size(), b.size()); ++k) {
    const int64_t x = a[a.size() - 1 - k];
    const int64_t y = b[b.size() - 1 - k];
    if (x != y && x != 1 && y != 1) return false;
  }
  return true;
}

// One result; a row has one for each.
using Result = std::function<MaybeType(const Context&)>;

Result like(size_t operand) {
  return [operand](const Context& c) { return MaybeType(c.type(operand)); };
}

// A tensor of the shape that operand `shape` holds, of operand `dtype`'s element type.
Result shaped_by(size_t shape, size_t dtype) {
  return [=](const Context& c) -> MaybeType {
    const auto extents = c.ints(shape);
    if (!extents) return std::nullopt;
    if (std::ranges::any_of(*extents, [](int64_t extent) { return extent < 0; })) {
      refuse(c, fmt::format("{} is no shape", ir::to_string(*extents)));
    }
    return Type{c.dtype(dtype), *extents};
  };
}

Result fixed(DataType dtype, const Shape& shape) {
  return [=](const Context&) { return MaybeType(Type{dtype, shape}); };
}

Result bools_like(size_t operand) {
  return [=](const Context& c) { return MaybeType(Type{DataType::kBool, c.shape(operand)}); };
}

// One bit per element, in words of 32.
Result packed_bits(size_t operand) {
  return [=](const Context& c) {
    const int64_t elements = c.type(operand).num_elements();
    return MaybeType(Type{DataType::kUInt32, {(elements + 31) / 32}});
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
    refuse(c, "it transposes batch dimensions, which is not supported");
  }
  Shape a = c.shape(0);
  Shape b = c.shape(1);
  if (a.size() < 2 || b.size() < 2) {
    refuse(c, fmt::format("it multiplies {} by {}; both must have rank 2 or more", ir::to_string(a),
                          ir::to_string(b)));
  }
  if (c.attribute("transA", 0) != 0) std::swap(a[a.size() - 1], a[a.size() - 2]);
  if (c.attribute("transB", 0) != 0) std::swap(b[b.size() - 1], b[b.size() - 2]);
  const int64_t rows = a[a.size() - 2];
  const int64_t columns = b.back();
  if (a.back() != b[b.size() - 2]) {
    refuse(c, fmt::format("it multiplies {} by {}: {} is not {}", ir::to_string(c.type(0)),
                          ir::to_string(c.type(1)), a.back(), b[b.size() - 2]));
  }
  a.resize(a.size() - 2);
  b.resize(b.size() - 2);
  if (!broadcasts(a, b) || c.dtype(0) != c.dtype(1)) {
    refuse(c, fmt::format("it multiplies {} by {}", ir::to_string(c.type(0)),
                          ir::to_string(c.type(1))));
  }
  Shape result = ir::broadcast(a, b);
  result.insert(result.end(), {rows, columns});
  return Type{c.dtype(0), std::move(result)};
}

// Queries, and the width of values; the lowering refuses caches and packed operands.
MaybeType attention_output(const Context& c) {
  if (!c.operation.input(2)) return std::nullopt;
  Type type = c.type(0);
  if (type.rank() != 3 || c.type(2).rank() != 3) {
    refuse(c, "its operands are not [batch, positions, width]");
  }
  type.shape[2] = c.shape(2)[2];
  return type;
}

// The input by a matrix whose columns are queries, keys and values.
MaybeType self_attention_output(const Context& c) {
  Type type = c.type(0);
  if (type.rank() != 3 || c.type(1).rank() != 2 || c.shape(1)[0] != type.shape[2]) {
    refuse(c, "its input and weights do not fit together");
  }
  const Shape sizes = c.operation.attributes.get_ints("qkv_hidden_sizes");
  type.shape[2] = sizes.size() == 3 ? sizes[2] : c.shape(1)[1] / 3;
  return type;
}

MaybeType concatenation(const Context& c) {
  Type type = c.type(0);
  const size_t axis = ir::normalize_axis(c.attribute("axis", 0), type.rank());
  for (size_t k = 1; k < c.operation.inputs.size(); ++k) {
    Type part = c.type(k);
    if (part.rank() == type.rank()) {
      const int64_t extent = part.shape[axis];
      part.shape[axis] = type.shape[axis];
      if (part == type) {
        type.shape[axis] += extent;
        continue;
      }
    }
    refuse(c, fmt::format("operand {} does not go with the others along axis {}", k, axis));
  }
  return type;
}

MaybeType lengths(const Context& c) {
  return Type{DataType::kInt64, {static_cast<int64_t>(c.operation.inputs.size())}};
}

// The loss is a scalar unless it is left per label.
MaybeType loss(const Context& c) {
  const bool per_label = c.operation.attributes.get_string("reduction", "mean") == "none";
  return Type{c.dtype(0), per_label ? c.shape(1) : Shape{}};
}

// What the operands must fulfil; throws Error when they do not. The definitions of the operators
// (ir's and the lowerings') take it for granted.
using Check = std::function<void(const Context&)>;

Check same_type(size_t a, size_t b) {
  return [=](const Context& c) {
    if (c.type(a) == c.type(b)) return;
    refuse(c, fmt::format("operands {} and {} must be of one type, not {} and {}", a, b,
                          ir::to_string(c.type(a)), ir::to_string(c.type(b))));
  };
}

Check same_shape(size_t a, size_t b) {
  return [=](const Context& c) {
    if (c.shape(a) == c.shape(b)) return;
    refuse(c, fmt::format("operands {} and {} must be of one shape, not {} and {}", a, b,
                          ir::to_string(c.shape(a)), ir::to_string(c.shape(b))));
  };
}

Check floating(size_t k) {
  return [=](const Context& c) {
    if (!ir::is_floating(c.dtype(k))) {
      refuse(c, fmt::format("operand {} must be of floating point", k));
    }
  };
}

Check integral(size_t k) {
  return [=](const Context& c) {
    if (!ir::is_integer(c.dtype(k))) refuse(c, fmt::format("operand {} must be of integers", k));
  };
}

bool broadcasts_to(const Shape& from, const Shape& to) {
  if (from.size() > to.size()) return false;
  for (size_t k = 0; k < from.size(); ++k) {
    const int64_t extent = from[from.size() - 1 - k];
    if (extent != 1 && extent != to[to.size() - 1 - k]) return false;
  }
  return true;
}

Check broadcast_onto(size_t from, size_t to) {
  return [=](const Context& c) {
    if (!c.operation.input(from) || broadcasts_to(c.shape(from), c.shape(to))) return;
    refuse(c, fmt::format("operand {} of shape {} does not broadcast to {}, operand {}'s", from,
                          ir::to_string(c.shape(from)), ir::to_string(c.shape(to)), to));
  };
}

Check axis_in_range(size_t operand, int64_t otherwise) {
  return [=](const Context& c) {
    const int64_t axis = c.attribute("axis", otherwise);
    const auto rank = static_cast<int64_t>(c.type(operand).rank());
    if (axis < -rank || axis >= rank) {
      refuse(c, fmt::format("there is no axis {} of operand {}, whose rank is {}", axis, operand,
                            rank));
    }
  };
}

// scores [N, C, D...], labels [N, D...], weights [C] where there are any, one ignored label.
Check labels_fit(size_t scores, size_t labels, size_t weights, size_t ignored) {
  return [=](const Context& c) {
    Shape expected = c.shape(scores);
    if (expected.size() < 2) {
      refuse(c, fmt::format("scores have the axes [N, C, ...], not {}", ir::to_string(expected)));
    }
    const int64_t classes = expected[1];
    expected.erase(expected.begin() + 1);
    if (c.shape(labels) != expected) {
      refuse(c, fmt::format("labels for scores of shape {} have shape {}, not {}",
                            ir::to_string(c.shape(scores)), ir::to_string(expected),
                            ir::to_string(c.shape(labels))));
    }
    if (c.operation.input(weights) && c.shape(weights) != Shape{classes}) {
      refuse(c, fmt::format("{} classes have weights of shape [{}], not {}", classes, classes,
                            ir::to_string(c.shape(weights))));
    }
    if (c.operation.input(ignored) &&
        (!ir::is_integer(c.dtype(ignored)) || c.type(ignored).num_elements() != 1)) {
      refuse(c, "the ignored label is one integer");
    }
  };
}

// dY of a loss: one number, or one for each label.
Check loss_gradient_fits(size_t gradient, size_t labels) {
  return [=](const Context& c) {
    const bool per_label = c.operation.attributes.get_string("reduction", "mean") == "none";
    const bool fits =
        per_label ? c.shape(gradient) == c.shape(labels) : c.type(gradient).num_elements() == 1;
    if (!fits) {
      refuse(c, fmt::format("the loss's gradient has shape {}", ir::to_string(c.shape(gradient))));
    }
  };
}

// Statistics saved by a normalization of operand x from `axis` on.
Check statistics_fit(size_t x, size_t k) {
  return [=](const Context& c) {
    Shape expected = c.shape(x);
    const size_t axis = ir::normalize_axis(c.attribute("axis", -1), expected.size());
    for (size_t d = axis; d < expected.size(); ++d) expected[d] = 1;
    if (ir::num_elements(expected) != c.type(k).num_elements()) {
      refuse(c, fmt::format("operand {} has shape {}, not {}", k, ir::to_string(c.shape(k)),
                            ir::to_string(expected)));
    }
  };
}

// dY of a Gather along `axis` from a tensor of the shape that operand 0 holds.
void gather_grad_fits(const Context& c) {
  const auto data = c.ints(0);
  if (!data) return;
  const int64_t axis = c.attribute("axis", 0);
  const auto rank = static_cast<int64_t>(data->size());
  if (axis < -rank || axis >= rank) refuse(c, fmt::format("there is no axis {}", axis));
  const size_t at = ir::normalize_axis(axis, data->size());
  Shape expected(data->begin(), data->begin() + static_cast<int64_t>(at));
  expected.insert(expected.end(), c.shape(1).begin(), c.shape(1).end());
  expected.insert(expected.end(), data->begin() + static_cast<int64_t>(at) + 1, data->end());
  if (c.shape(2) != expected) {
    refuse(c, fmt::format("the gradient of what it gathers has shape {}, not {}",
                          ir::to_string(expected), ir::to_string(c.shape(2))));
  }
}

std::vector<MaybeType> split(const Context& c) {
  std::vector<MaybeType> types(c.operation.results.size());
  axis_in_range(0, 0)(c);
  const size_t axis = ir::normalize_axis(c.attribute("axis", 0), c.type(0).rank());
  const auto sizes = c.ints(1);
  if (!sizes || sizes->size() != types.size()) return types;
  const bool adds_up =
      std::accumulate(sizes->begin(), sizes->end(), int64_t{0}) == c.shape(0)[axis] &&
      std::ranges::all_of(*sizes, [](int64_t size) { return size >= 0; });
  if (!adds_up) {
    refuse(c, fmt::format("its parts {} do not make {} of axis {}", ir::to_string(*sizes),
                          c.shape(0)[axis], axis));
  }
  for (size_t k = 0; k < types.size(); ++k) {
    types[k] = c.type(0);
    types[k]->shape[axis] = (*sizes)[k];
  }
  return types;
}

// dY of a GatherND from a tensor of the shape that operand 0 holds.
void gather_nd_grad_fits(const Context& c) {
  const auto data = c.ints(0);
  if (!data) return;
  const Shape& indices = c.shape(1);
  const int64_t batch = c.attribute("batch_dims", 0);
  const int64_t named = indices.empty() ? -1 : batch + indices.back();
  if (batch < 0 || indices.empty() || batch >= static_cast<int64_t>(indices.size()) ||
      named > static_cast<int64_t>(data->size())) {
    refuse(c, fmt::format("its indices do not fit data of shape {}", ir::to_string(*data)));
  }
  Shape expected(indices.begin(), indices.end() - 1);
  expected.insert(expected.end(), data->begin() + named, data->end());
  if (c.shape(2) != expected) {
    refuse(c, fmt::format("the gradient of what it gathers has shape {}, not {}",
                          ir::to_string(expected), ir::to_string(c.shape(2))));
  }
}

// dY of a Slice of a tensor of the shape that operand 1 holds: dY, shape, starts, ends, axes,
// steps.
void slice_grad_fits(const Context& c) {
  const auto data = c.ints(1);
  const auto starts = c.ints(2);
  const auto ends = c.ints(3);
  if (!data || !starts || !ends) return;
  Shape axes(starts->size());
  std::iota(axes.begin(), axes.end(), int64_t{0});
  if (c.operation.input(4)) axes = c.ints(4).value_or(axes);
  Shape steps(starts->size(), 1);
  if (c.operation.input(5)) steps = c.ints(5).value_or(steps);
  if (ends->size() != starts->size() || axes.size() != starts->size() ||
      steps.size() != starts->size()) {
    refuse(c, fmt::format("it has {} starts, {} ends, {} axes and {} steps", starts->size(),
                          ends->size(), axes.size(), steps.size()));
  }
  Shape expected = *data;
  const auto rank = static_cast<int64_t>(data->size());
  for (size_t k = 0; k < axes.size(); ++k) {
    if (axes[k] < -rank || axes[k] >= rank || steps[k] == 0) {
      refuse(c, fmt::format("axis {} with step {} of data of rank {}", axes[k], steps[k], rank));
    }
    const size_t at = ir::normalize_axis(axes[k], data->size());
    const int64_t extent = (*data)[at];
    const auto wrap = [&](int64_t bound) { return bound < 0 ? bound + extent : bound; };
    const bool forward = steps[k] > 0;
    const int64_t begin = std::clamp<int64_t>(wrap((*starts)[k]), 0,
                                              std::max<int64_t>(forward ? extent : extent - 1, 0));
    const int64_t end = forward ? std::clamp<int64_t>(wrap((*ends)[k]), 0, extent)
                                : std::max<int64_t>(wrap((*ends)[k]), -1);
    const int64_t length = forward ? end - begin : begin - end;
    const int64_t step = forward ? steps[k] : -steps[k];
    expected[at] = length <= 0 ? 0 : (length - 1) / step + 1;
  }
  if (c.shape(0) != expected) {
    refuse(c, fmt::format("the gradient of the slice has shape {}, not {}", ir::to_string(expected),
                          ir::to_string(c.shape(0))));
  }
}

struct Row {
  std::vector<Result> results;
  std::vector<Check> checks;
};
using Rows = std::unordered_map<std::string, Row>;

const Rows& rows() {
  static const Rows table = {
      {"FusedMatMul", {{fused_matmul}, {floating(0)}}},
      {"TransposeMatMul", {{fused_matmul}, {floating(0)}}},
      {"SoftmaxGrad", {{like(0)}, {same_type(0, 1), axis_in_range(0, 1)}}},
      {"SoftmaxGrad_13", {{like(0)}, {same_type(0, 1), axis_in_range(0, -1)}}},
      {"LogSoftmaxGrad", {{like(0)}, {same_type(0, 1), axis_in_range(0, 1)}}},
      {"LogSoftmaxGrad_13", {{like(0)}, {same_type(0, 1), axis_in_range(0, -1)}}},
      {"SimplifiedLayerNormalization",
       {{like(0), statistics()}, {floating(0), axis_in_range(0, -1), broadcast_onto(1, 0)}}},
      {"LayerNormalizationGrad",
       {{like(1), like(2), like(2)},
        {same_type(0, 1), axis_in_range(1, -1), broadcast_onto(2, 1), statistics_fit(1, 3),
         statistics_fit(1, 4)}}},
      {"SimplifiedLayerNormalizationGrad",
       {{like(1), like(2)},
        {same_type(0, 1), axis_in_range(1, -1), broadcast_onto(2, 1), statistics_fit(1, 3)}}},
      {"SoftmaxCrossEntropyLossInternal",
       {{loss, like(0)}, {floating(0), integral(1), labels_fit(0, 1, 2, 3)}}},
      {"SoftmaxCrossEntropyLossGrad",
       {{like(1)},
        {floating(1), integral(2), labels_fit(1, 2, 3, 4), loss_gradient_fits(0, 2),
         broadcast_onto(5, 1)}}},
      {"SoftmaxCrossEntropyLossInternalGrad",
       {{like(1)},
        {floating(1), integral(2), labels_fit(1, 2, 3, 4), loss_gradient_fits(0, 2),
         broadcast_onto(5, 1)}}},
      {"GatherGrad", {{shaped_by(0, 2)}, {integral(0), integral(1), gather_grad_fits}}},
      {"GatherElementsGrad",
       {{shaped_by(1, 0)}, {integral(1), integral(2), same_shape(0, 2), axis_in_range(0, 0)}}},
      {"GatherNDGrad", {{shaped_by(0, 2)}, {integral(0), integral(1), gather_nd_grad_fits}}},
      {"SliceGrad", {{shaped_by(1, 0)}, {integral(1), slice_grad_fits}}},
      {"ConcatTraining", {{concatenation, lengths}, {axis_in_range(0, 0)}}},
      {"Gelu", {{like(0)}, {floating(0)}}},
      {"GeluGrad", {{like(1)}, {same_type(0, 1)}}},
      {"FastGelu", {{like(0)}, {floating(0), broadcast_onto(1, 0)}}},
      {"FastGeluGrad", {{like(1)}, {same_type(0, 1)}}},
      {"QuickGelu", {{like(0)}, {floating(0)}}},
      {"QuickGeluGrad", {{like(1)}, {same_type(0, 1)}}},
      {"BiasGelu", {{like(0)}, {floating(0), broadcast_onto(1, 0)}}},
      {"BiasGeluGrad_dX", {{like(1)}, {same_type(0, 1), broadcast_onto(2, 1)}}},
      {"BiasFastGeluGrad_dX", {{like(1)}, {same_type(0, 1), broadcast_onto(2, 1)}}},
      {"ReluGrad", {{like(0)}, {same_type(0, 1)}}},
      {"SigmoidGrad", {{like(0)}, {same_type(0, 1)}}},
      {"TanhGrad", {{like(0)}, {same_type(0, 1)}}},
      {"DropoutGrad", {{like(0)}, {floating(0), same_shape(0, 1)}}},
      {"BiasDropout",
       {{like(0), bools_like(0)}, {floating(0), broadcast_onto(1, 0), broadcast_onto(2, 0)}}},
      {"BitmaskDropout", {{like(0), packed_bits(0)}, {floating(0)}}},
      {"BitmaskBiasDropout",
       {{like(0), packed_bits(0)}, {floating(0), broadcast_onto(1, 0), broadcast_onto(2, 0)}}},
      {"BitmaskDropoutGrad", {{like(0)}, {floating(0)}}},
      {"Scale", {{like(0)}, {}}},
      {"InPlaceAccumulator", {{like(0)}, {same_type(0, 1)}}},
      {"InPlaceAccumulatorV2", {{fixed(DataType::kBool, {1}), like(0)}, {same_type(0, 1)}}},
      {"ZeroGradient", {{like(0)}, {}}},
      {"MultiHeadAttention", {{attention_output}, {floating(0)}}},
      {"Attention", {{self_attention_output}, {floating(0), floating(1)}}},
      {"GroupQueryAttention", {{like(0)}, {floating(0)}}},
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
  for (const Check& check : found->second.checks) check(context);
  const std::vector<Result>& results = found->second.results;
  std::vector<MaybeType> types(operation.results.size());
  for (size_t k = 0; k < types.size(); ++k) {
    if (!operation.has_result(k)) continue;
    if (k >= results.size()) {
      refuse(context,
             fmt::format("it has {} results, the operator {}", types.size(), results.size()));
    }
    types[k] = results[k](context);
  }
  return types;
}

}  // namespace autosp::onnx_io

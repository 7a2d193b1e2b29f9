// The `autosp` domain's operators (docs/collectives.md, attention.md, random.md) as libonnx
// schemas, so that its checker and its shape inference accept rank graphs in this process.
#include <onnx/defs/schema.h>
#include <onnx/defs/shape_inference.h>

#include <mutex>

#include "ir/graph.h"
#include "onnx/attention_schemas.h"
#include "onnx/operation.h"

namespace autosp::onnx_io {

namespace {

using onnx::InferenceContext;
using onnx::OpSchema;

std::vector<int64_t> ints(const InferenceContext& context, const std::string& name) {
  const onnx::AttributeProto* attribute = context.getAttribute(name);
  if (attribute == nullptr) {
    fail_shape_inference("attribute '", name, "' is missing");
  }
  return {attribute->ints().begin(), attribute->ints().end()};
}

// Whether the numbers are an operand, not known here, in the place of attributes.
bool has_open_sizes(const InferenceContext& context) { return context.getNumInputs() > 2; }

void require(bool condition, const std::string& message) {
  if (!condition) {
    fail_shape_inference(message);
  }
}

// Operand 0's shape, or null when it is not known; element types go to the results.
const onnx::TensorShapeProto* operand_shape(InferenceContext& context) {
  onnx::propagateElemTypeFromInputToOutput(context, 0, 0);
  if (context.getNumOutputs() > 1) {  // a token
    onnx::updateOutputElemType(context, 1, onnx::TensorProto::INT64);
    onnx::updateOutputShape(context, 1, onnx::TensorShapeProto());
  }
  const auto* type = context.getInputType(0);
  if (type == nullptr || !onnx::hasShape(*type)) return nullptr;
  return &type->tensor_type().shape();
}

onnx::TensorShapeProto* result_shape(InferenceContext& context) {
  return context.getOutputType(0)->mutable_tensor_type()->mutable_shape();
}

void infer_all_reduce(InferenceContext& context) {
  require(!ints(context, "group").empty(), "'group' is empty");
  const auto* shape = operand_shape(context);
  if (shape != nullptr) *result_shape(context) = *shape;
}

// Checks `axis` and `sizes` and returns the axis.
int checked_axis(const InferenceContext& context, const onnx::TensorShapeProto& shape,
                 const std::vector<int64_t>& sizes) {
  require(sizes.size() == ints(context, "group").size(), "'sizes' and 'group' differ in length");
  const int64_t axis = onnx::getAttribute(context, "axis", int64_t{0});
  require(axis >= 0 && axis < shape.dim_size(), "'axis' is not an axis of the operand");
  return static_cast<int>(axis);
}

int64_t total(const std::vector<int64_t>& sizes) {
  int64_t sum = 0;
  for (int64_t size : sizes) sum += size;
  return sum;
}

void leave_axis_open(InferenceContext& context, const onnx::TensorShapeProto& shape) {
  const int64_t axis = onnx::getAttribute(context, "axis", int64_t{0});
  require(axis >= 0 && axis < shape.dim_size(), "'axis' is not an axis of the operand");
  auto* result = result_shape(context);
  *result = shape;
  result->mutable_dim(static_cast<int>(axis))->clear_value();
}

void infer_all_gather(InferenceContext& context) {
  const auto* shape = operand_shape(context);
  if (shape == nullptr) return;
  if (has_open_sizes(context)) return leave_axis_open(context, *shape);
  const auto sizes = ints(context, "sizes");
  const int axis = checked_axis(context, *shape, sizes);
  auto* result = result_shape(context);
  *result = *shape;
  result->mutable_dim(axis)->set_dim_value(total(sizes));
}

// Which member this graph's rank is cannot be read off the sizes, so an uneven result's extent is
// left open: value_info states it, or the attribute 'member' tells it once the length is known.
void infer_reduce_scatter(InferenceContext& context) {
  const auto* shape = operand_shape(context);
  if (shape == nullptr) return;
  if (has_open_sizes(context)) return leave_axis_open(context, *shape);
  const auto sizes = ints(context, "sizes");
  const int axis = checked_axis(context, *shape, sizes);
  const auto& extent = shape->dim(axis);
  require(!extent.has_dim_value() || extent.dim_value() == total(sizes),
          "'sizes' do not add up to the operand's extent");
  auto* result = result_shape(context);
  *result = *shape;
  result->mutable_dim(axis)->clear_value();
  const bool even = std::ranges::all_of(sizes, [&](int64_t size) { return size == sizes[0]; });
  if (even && !sizes.empty()) result->mutable_dim(axis)->set_dim_value(sizes[0]);
}

void infer_all_to_all(InferenceContext& context) {
  const auto* shape = operand_shape(context);
  if (has_open_sizes(context)) return;
  const auto extents = ints(context, "shape");
  const size_t members = ints(context, "group").size();
  for (const char* name : {"recv_begin", "recv_extent"}) {
    require(ints(context, name).size() == members * extents.size(),
            std::string("'") + name + "' needs one number per member and axis of the result");
  }
  auto* result = result_shape(context);
  result->clear_dim();
  for (int64_t extent : extents) result->add_dim()->set_dim_value(extent);
  if (shape == nullptr) return;
  for (const char* name : {"send_begin", "send_extent"}) {
    require(ints(context, name).size() == members * static_cast<size_t>(shape->dim_size()),
            std::string("'") + name + "' needs one number per member and axis of the operand");
  }
}

// `shape` is the result's; `whole`, `begin` and `extent` come together or not at all.
void infer_random_uniform(InferenceContext& context) {
  const int64_t dtype = onnx::getAttribute(context, "dtype", onnx::TensorProto::FLOAT);
  require(dtype == onnx::TensorProto::FLOAT || dtype == onnx::TensorProto::DOUBLE,
          "'dtype' is neither float nor double");
  context.getOutputType(0)->mutable_tensor_type()->set_elem_type(static_cast<int32_t>(dtype));
  const auto shape = ints(context, "shape");
  auto* result = result_shape(context);
  result->clear_dim();
  for (int64_t extent : shape) result->add_dim()->set_dim_value(extent);
  if (context.getAttribute("whole") == nullptr) return;
  const auto whole = ints(context, "whole");
  const auto begin = ints(context, "begin");
  const auto extent = ints(context, "extent");
  require(begin.size() == whole.size() && extent.size() == whole.size(),
          "'whole', 'begin' and 'extent' differ in length");
  for (size_t k = 0; k < whole.size(); ++k) {
    require(begin[k] >= 0 && extent[k] >= 0 && begin[k] <= whole[k] - extent[k],
            "the box of 'begin' and 'extent' is not in 'whole'");
  }
  require(ir::num_elements(extent) == ir::num_elements(shape),
          "'extent' and 'shape' have different numbers of elements");
}

OpSchema recompute_barrier() {
  OpSchema schema("RecomputeBarrier", __FILE__, __LINE__);
  schema.SetDomain(std::string(ir::kAutospDomain))
      .SinceVersion(1)
      .SetDoc("X, but not before `after` is known: see docs/other_runtimes.md.")
      .Input(0, "X", "an operand of a recomputed node", "T")
      .Input(1, "after", "a gradient", "F")
      .Output(0, "Y", "X", "T")
      .TypeConstraint("T", OpSchema::all_tensor_types_ir4(), "any tensor")
      .TypeConstraint("F", OpSchema::all_float_types_ir4(), "floats")
      .TypeAndShapeInferenceFunction(onnx::propagateShapeAndTypeFromFirstInput);
  return schema;
}

OpSchema collective(const char* name, const char* doc) {
  std::vector<std::string> types = OpSchema::all_tensor_types_ir4();
  OpSchema schema(name, __FILE__, __LINE__);
  schema.SetDomain(std::string(ir::kAutospDomain))
      .SinceVersion(1)
      .SetDoc(doc)
      .Input(0, "X", "this rank's operand", "T")
      .Input(1, "after", "the token of the collective before", "tensor(int64)", OpSchema::Optional)
      .Output(0, "Y", "this rank's result", "T")
      .Output(1, "token", "for the collective behind", "tensor(int64)", OpSchema::Optional)
      .TypeConstraint("T", types, "any tensor")
      .Attr("group", "the ranks involved, in order", onnx::AttributeProto::INTS, true);
  return schema;
}

OpSchema along_an_axis(const char* name, const char* doc) {
  return collective(name, doc)
      .Attr("axis", "the axis that is joined or cut", onnx::AttributeProto::INT, true)
      .Attr("sizes", "each member's extent along it", onnx::AttributeProto::INTS, false)
      .Input(2, "open_sizes", "in the place of 'sizes'", "tensor(int64)", OpSchema::Optional);
}

OpSchema random_uniform() {
  OpSchema schema("RandomUniform", __FILE__, __LINE__);
  schema.SetDomain(std::string(ir::kAutospDomain))
      .SinceVersion(1)
      .SetDoc("A part of a tensor of numbers drawn by their place: see docs/random.md.")
      .Attr("seed", "of the run", onnx::AttributeProto::INT, true)
      .Attr("stream", "of the operator", onnx::AttributeProto::INT, true)
      .Attr("shape", "of the result", onnx::AttributeProto::INTS, true)
      .Attr("whole", "extents of the whole tensor", onnx::AttributeProto::INTS, false)
      .Attr("begin", "of this part in it", onnx::AttributeProto::INTS, false)
      .Attr("extent", "of this part in it", onnx::AttributeProto::INTS, false)
      .Attr("dtype", "of the result", onnx::AttributeProto::INT, int64_t{onnx::TensorProto::FLOAT})
      .Input(0, "step", "number of the training step; 0 when left out", "I", OpSchema::Optional)
      .Output(0, "Y", "numbers in [0, 1)", "T")
      .TypeConstraint("I", {"tensor(int64)"}, "a scalar")
      .TypeConstraint("T", {"tensor(float)", "tensor(double)"}, "floats")
      .TypeAndShapeInferenceFunction(infer_random_uniform);
  return schema;
}

// ONNX Runtime's exporter puts this operator of its own into the standard domain; without a schema
// the checker would refuse the whole model.
OpSchema simplified_layer_normalization() {
  const std::vector<std::string> types = OpSchema::all_float_types_ir4();
  OpSchema schema("SimplifiedLayerNormalization", __FILE__, __LINE__);
  schema.SetDomain("")
      .SinceVersion(1)
      .SetDoc("X / sqrt(mean(X^2) + epsilon) * scale over the axes from `axis` on.")
      .Attr("axis", "the first normalised axis", onnx::AttributeProto::INT, int64_t{-1})
      .Attr("epsilon", "added to the mean", onnx::AttributeProto::FLOAT, 1e-5F)
      .Attr("stash_type", "of the statistics", onnx::AttributeProto::INT, int64_t{1})
      .Input(0, "X", "operand", "T")
      .Input(1, "scale", "per normalised entry", "V")
      .Output(0, "Y", "result", "V")
      .Output(1, "inv_std_var", "saved statistics", "U", OpSchema::Optional)
      .TypeConstraint("T", types, "floats")
      .TypeConstraint("V", types, "floats")
      .TypeConstraint("U", types, "floats");
  return schema;
}

// TensorRT's, which it reads from the standard domain. Its result's shape is left to value_info.
OpSchema dist_collective() {
  OpSchema schema("DistCollective", __FILE__, __LINE__);
  schema.SetDomain("")
      .SinceVersion(1)
      .SetDoc("A collective of TensorRT: see docs/other_runtimes.md.")
      .Input(0, "X", "this rank's operand", "T")
      .Output(0, "Y", "this rank's result", "T")
      .TypeConstraint("T", OpSchema::all_tensor_types_ir4(), "any tensor")
      .Attr("collective_operation", "all_reduce, ...", onnx::AttributeProto::STRING, true)
      .Attr("reduce_op", "sum or none", onnx::AttributeProto::STRING, true)
      .Attr("root", "-1: none", onnx::AttributeProto::INT, int64_t{-1})
      .Attr("nb_rank", "ranks that take part", onnx::AttributeProto::INT, true)
      .Attr("group_size", "of `groups`", onnx::AttributeProto::INT, true)
      .Attr("groups", "the ranks that take part", onnx::AttributeProto::INTS, true)
      .TypeAndShapeInferenceFunction([](InferenceContext& context) {
        onnx::propagateElemTypeFromInputToOutput(context, 0, 0);
      });
  return schema;
}

void register_all() {
  auto& domains = onnx::OpSchemaRegistry::DomainToVersionRange::Instance();
  domains.AddDomainToVersion(std::string(ir::kAutospDomain), 1, 1);
  onnx::RegisterSchema(collective("AllReduce", "The sum of the members' operands, on every member.")
                           .TypeAndShapeInferenceFunction(infer_all_reduce));
  onnx::RegisterSchema(along_an_axis("AllGather", "The members' operands, joined along an axis.")
                           .TypeAndShapeInferenceFunction(infer_all_gather));
  onnx::RegisterSchema(
      along_an_axis("ReduceScatter", "This member's piece of the sum of the members' operands.")
          .Attr("member", "whose piece it is, of open_sizes", onnx::AttributeProto::INT, false)
          .TypeAndShapeInferenceFunction(infer_reduce_scatter));
  onnx::RegisterSchema(recompute_barrier());
  onnx::RegisterSchema(dist_collective());
  onnx::RegisterSchema(simplified_layer_normalization());
  OpSchema exchange = collective("AllToAll", "An exchange of boxes: see docs/collectives.md.");
  exchange.Attr("shape", "of the result", onnx::AttributeProto::INTS, false);
  for (const char* name : {"send_begin", "send_extent", "recv_begin", "recv_extent"}) {
    exchange.Attr(name, "of the box for each member", onnx::AttributeProto::INTS, false);
  }
  exchange.Input(2, "open_boxes", "in the place of the other lists, one after another",
                 "tensor(int64)", OpSchema::Optional);
  onnx::RegisterSchema(std::move(exchange.TypeAndShapeInferenceFunction(infer_all_to_all)));
  onnx::RegisterSchema(random_uniform());
  register_attention_schemas();
}

}  // namespace

void register_schemas() {
  static std::once_flag once;
  std::call_once(once, register_all);
}

}  // namespace autosp::onnx_io

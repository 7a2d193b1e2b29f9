// autosp::Attention and autosp::AttentionGrad (docs/attention.md) as libonnx schemas.
#include "onnx/attention_schemas.h"

#include <onnx/defs/shape_inference.h>

#include <array>

#include "ir/graph.h"

namespace autosp::onnx_io {

namespace {

using onnx::InferenceContext;
using onnx::OpSchema;
using onnx::TensorShapeProto;

const TensorShapeProto* shape_of(const InferenceContext& context, size_t k) {
  const auto* type = k < context.getNumInputs() ? context.getInputType(k) : nullptr;
  if (type == nullptr || !onnx::hasShape(*type)) return nullptr;
  return &type->tensor_type().shape();
}

using Dim = TensorShapeProto::Dimension;

bool known(const Dim& dim) { return dim.has_dim_value(); }

// The sizes of docs/attention.md, checked against every operand as it is read.
class Sizes {
 public:
  explicit Sizes(const InferenceContext& context) : context_(context) {}

  // Reads operand k's shape into `dims`; whatever is known must agree.
  void read(size_t k, const char* name, const std::vector<Dim*>& dims, bool may_broadcast = false) {
    const TensorShapeProto* shape = shape_of(context_, k);
    if (shape == nullptr) return;
    if (shape->dim_size() != static_cast<int>(dims.size())) {
      fail_shape_inference(name, " has rank ", shape->dim_size(), ", not ", dims.size());
    }
    for (size_t d = 0; d < dims.size(); ++d) {
      const Dim& found = shape->dim(static_cast<int>(d));
      if (!known(found)) {
        if (!known(*dims[d]) && !may_broadcast) *dims[d] = found;
        continue;
      }
      if (may_broadcast && found.dim_value() == 1) continue;
      if (known(*dims[d]) && dims[d]->dim_value() != found.dim_value()) {
        fail_shape_inference(name, " has extent ", found.dim_value(), " along axis ", d, ", not ",
                             dims[d]->dim_value());
      }
      *dims[d] = found;
    }
  }

  // Query, key and value, from operand k on.
  void read_main(size_t k) {
    read(k, "query", {&batch, &query_heads, &queries, &width});
    read(k + 1, "key", {&batch, &kv_heads, &keys, &width});
    read(k + 2, "value", {&batch, &kv_heads, &keys, &value_width});
    if (!known(query_heads) || !known(kv_heads)) return;
    if (kv_heads.dim_value() == 0 || query_heads.dim_value() % kv_heads.dim_value() != 0) {
      fail_shape_inference(query_heads.dim_value(), " query heads are no multiple of ",
                           kv_heads.dim_value(), " KV heads");
    }
  }

  // Bias, masks and sink, from operand k on.
  void read_optional(size_t k) {
    read(k, "bias", {&batch, &query_heads, &queries, &keys}, true);
    const std::array<const char*, 5> names = {"begin", "end", "key_mask", "query_segment",
                                              "key_segment"};
    for (size_t n = 0; n < names.size(); ++n) {
      Dim* along = n == 2 || n == 4 ? &keys : &queries;
      Dim of_mask;  // the batch may be 1, the other extent may not
      read(k + 1 + n, names[n], {&of_mask, along});
      if (known(of_mask) && known(batch) && of_mask.dim_value() != 1 &&
          of_mask.dim_value() != batch.dim_value()) {
        fail_shape_inference(names[n], " has a batch of ", of_mask.dim_value(), ", not ",
                             batch.dim_value());
      }
    }
    if (context_.hasInput(k + 4) != context_.hasInput(k + 5)) {
      fail_shape_inference("query_segment and key_segment come together");
    }
    read(k + 6, "sink", {&query_heads});
    read(k + 7, "step", {});
  }

  Dim batch, query_heads, kv_heads, queries, keys, width, value_width;

 private:
  const InferenceContext& context_;
};

void set_result(InferenceContext& context, size_t k, const std::vector<Dim>& dims) {
  if (k >= context.getNumOutputs() || !context.hasOutput(k)) return;
  auto* shape = context.getOutputType(k)->mutable_tensor_type()->mutable_shape();
  shape->clear_dim();
  for (const Dim& dim : dims) *shape->add_dim() = dim;
}

// Statistics are float, of doubles double.
void set_statistics(InferenceContext& context, size_t k, const std::vector<Dim>& dims) {
  if (k >= context.getNumOutputs() || !context.hasOutput(k)) return;
  const auto* type = context.getInputType(0);
  const bool wide = type != nullptr && type->tensor_type().elem_type() == onnx::TensorProto::DOUBLE;
  context.getOutputType(k)->mutable_tensor_type()->set_elem_type(wide ? onnx::TensorProto::DOUBLE
                                                                      : onnx::TensorProto::FLOAT);
  set_result(context, k, dims);
}

void check_attributes(const InferenceContext& context) {
  const auto* strides = context.getAttribute("dropout_strides");
  if (strides != nullptr && strides->ints_size() != 5) {
    fail_shape_inference("dropout_strides has ", strides->ints_size(), " numbers, not 5");
  }
  const std::string dead_rows = onnx::getAttribute(context, "dead_rows", std::string("none"));
  for (const char* name : {"none", "uniform", "zero", "unmasked", "nan"}) {
    if (dead_rows == name) return;
  }
  fail_shape_inference("dead_rows is '", dead_rows,
                       "'; it is none, uniform, zero, unmasked or nan");
}

void infer_attention(InferenceContext& context) {
  check_attributes(context);
  onnx::propagateElemTypeFromInputToOutput(context, 0, 0);
  Sizes sizes(context);
  sizes.read_main(0);
  sizes.read_optional(3);
  set_result(context, 0, {sizes.batch, sizes.query_heads, sizes.queries, sizes.value_width});
  for (size_t k : {1, 2}) {
    set_statistics(context, k, {sizes.batch, sizes.query_heads, sizes.queries});
  }
}

void infer_attention_grad(InferenceContext& context) {
  check_attributes(context);
  Sizes sizes(context);
  sizes.read_main(1);
  for (size_t k : {0, 4}) {
    sizes.read(k, k == 0 ? "output_gradient" : "output",
               {&sizes.batch, &sizes.query_heads, &sizes.queries, &sizes.value_width});
  }
  for (size_t k : {5, 6}) {
    sizes.read(k, k == 5 ? "row_max" : "row_sum",
               {&sizes.batch, &sizes.query_heads, &sizes.queries});
  }
  sizes.read_optional(7);
  for (size_t k = 0; k < 3; ++k) {
    if (k < context.getNumOutputs() && context.hasOutput(k)) {
      onnx::propagateElemTypeFromInputToOutput(context, k + 1, k);
    }
  }
  set_result(context, 0, {sizes.batch, sizes.query_heads, sizes.queries, sizes.width});
  set_result(context, 1, {sizes.batch, sizes.kv_heads, sizes.keys, sizes.width});
  set_result(context, 2, {sizes.batch, sizes.kv_heads, sizes.keys, sizes.value_width});
  for (const auto& [operand, result] : {std::pair<size_t, size_t>{7, 3}, {13, 4}}) {
    if (result >= context.getNumOutputs() || !context.hasOutput(result)) continue;
    if (!context.hasInput(operand)) {
      fail_shape_inference("result ", result, " is the gradient of operand ", operand,
                           ", which is absent");
    }
    onnx::propagateElemTypeFromInputToOutput(context, operand, result);
    if (const TensorShapeProto* shape = shape_of(context, operand)) {
      *context.getOutputType(result)->mutable_tensor_type()->mutable_shape() = *shape;
    }
  }
}

void add_optional_operands(OpSchema& schema, int k) {
  schema.Input(k, "bias", "added to the scores", "T", OpSchema::Optional)
      .Input(k + 1, "begin", "first key each query sees", "I", OpSchema::Optional)
      .Input(k + 2, "end", "one past the last key each query sees", "I", OpSchema::Optional)
      .Input(k + 3, "key_mask", "true where a key may be seen", "M", OpSchema::Optional)
      .Input(k + 4, "query_segment", "a query sees keys of its segment", "I", OpSchema::Optional)
      .Input(k + 5, "key_segment", "likewise", "I", OpSchema::Optional)
      .Input(k + 6, "sink", "a logit that carries no value", "T", OpSchema::Optional)
      .Input(k + 7, "step", "of the numbers that drop weights", "I", OpSchema::Optional);
}

OpSchema attention_schema(const char* name, const char* doc) {
  OpSchema schema(name, __FILE__, __LINE__);
  schema.SetDomain(std::string(ir::kAutospDomain))
      .SinceVersion(1)
      .SetDoc(doc)
      .Attr("scale", "of the products", onnx::AttributeProto::FLOAT, true)
      .Attr("softcap", "0: none", onnx::AttributeProto::FLOAT, 0.0F)
      .Attr("dead_rows", "weights of a row without a visible key", onnx::AttributeProto::STRING,
            std::string("none"))
      .Attr("dead_row_gradient", "whether its scores receive a gradient", onnx::AttributeProto::INT,
            int64_t{0})
      .Attr("joint_statistics", "whether max and sum may be any two that say the same together",
            onnx::AttributeProto::INT, int64_t{0})
      .Attr("dropout_seed", "of the numbers that drop weights", onnx::AttributeProto::INT,
            int64_t{0})
      .Attr("dropout_stream", "of those numbers", onnx::AttributeProto::INT, int64_t{0})
      .Attr("dropout_offset", "the first weight's number", onnx::AttributeProto::INT, int64_t{0})
      .Attr("dropout_strides", "by batch, KV head, its query heads, queries and keys",
            onnx::AttributeProto::INTS, false)
      .Attr("dropout_from", "least number that keeps a weight", onnx::AttributeProto::FLOAT, 0.0F)
      .Attr("dropout_below", "what such numbers are below", onnx::AttributeProto::FLOAT, 1.0F)
      .Attr("dropout_scale", "of weights that are kept", onnx::AttributeProto::FLOAT, 1.0F)
      .TypeConstraint("T", OpSchema::all_float_types_ir4(), "floats")
      .TypeConstraint("S", {"tensor(float)", "tensor(double)"}, "of statistics")
      .TypeConstraint("I", {"tensor(int64)"}, "positions")
      .TypeConstraint("M", {"tensor(bool)"}, "masks");
  return schema;
}

OpSchema forward() {
  OpSchema schema = attention_schema("Attention", "Attention: see docs/attention.md.");
  schema.Input(0, "query", "[batch, query heads, queries, width]", "T")
      .Input(1, "key", "[batch, KV heads, keys, width]", "T")
      .Input(2, "value", "[batch, KV heads, keys, value width]", "T");
  add_optional_operands(schema, 3);
  schema.Output(0, "output", "[batch, query heads, queries, value width]", "T")
      .Output(1, "row_max", "[batch, query heads, queries]", "S", OpSchema::Optional)
      .Output(2, "row_sum", "[batch, query heads, queries]", "S", OpSchema::Optional)
      .TypeAndShapeInferenceFunction(infer_attention);
  return schema;
}

OpSchema gradient() {
  OpSchema schema = attention_schema("AttentionGrad", "Its gradient: see docs/attention.md.");
  schema.Input(0, "output_gradient", "like output", "T")
      .Input(1, "query", "as in Attention", "T")
      .Input(2, "key", "as in Attention", "T")
      .Input(3, "value", "as in Attention", "T")
      .Input(4, "output", "of Attention", "T")
      .Input(5, "row_max", "of Attention", "S")
      .Input(6, "row_sum", "of Attention", "S");
  add_optional_operands(schema, 7);
  schema.Output(0, "query_gradient", "like query", "T")
      .Output(1, "key_gradient", "like key", "T")
      .Output(2, "value_gradient", "like value", "T")
      .Output(3, "bias_gradient", "like bias", "T", OpSchema::Optional)
      .Output(4, "sink_gradient", "like sink", "T", OpSchema::Optional)
      .TypeAndShapeInferenceFunction(infer_attention_grad);
  return schema;
}

}  // namespace

void register_attention_schemas() {
  onnx::RegisterSchema(forward());
  onnx::RegisterSchema(gradient());
}

}  // namespace autosp::onnx_io

// Type and shape inference of one node by libonnx's own inference functions, on our values.
#include <onnx/defs/schema.h>
#include <onnx/defs/shape_inference.h>

#include <map>
#include <memory>

#include "ir/parallel_operators.h"
#include "onnx/model.h"
#include "onnx/operation.h"
#include "onnx/proto.h"

namespace autosp::onnx_io {

namespace {

// Inference functions look at the contents of shapes, axes, pads and scalars only.
constexpr int64_t kVisibleBytes = 1 << 16;

class NodeContext : public onnx::InferenceContext {
 public:
  NodeContext(const ir::Graph& graph, const Operation& operation)
      : operation_(&operation),
        types_(operation.inputs.size()),
        data_(operation.inputs.size()),
        results_(operation.results.size()) {
    for (const auto& [name, attribute] : operation.attributes) {
      attributes_.emplace(name, to_proto(name, attribute));
    }
    for (size_t k = 0; k < operation.inputs.size(); ++k) {
      const ValueId input = operation.inputs[k];
      if (!input) continue;
      set_type(graph.type(input), &types_[k].emplace());
      if (graph.is_constant(input) && graph.type(input).num_bytes() <= kVisibleBytes) {
        data_[k] = to_proto(graph.constant(input));
      }
    }
  }

  const onnx::AttributeProto* getAttribute(const std::string& name) const override {
    const auto found = attributes_.find(name);
    return found == attributes_.end() ? nullptr : &found->second;
  }
  size_t getNumInputs() const override { return types_.size(); }
  const onnx::TypeProto* getInputType(size_t k) const override {
    return k < types_.size() && types_[k] ? &*types_[k] : nullptr;
  }
  bool hasInput(size_t k) const override { return getInputType(k) != nullptr; }
  const onnx::TensorProto* getInputData(size_t k) const override {
    return k < data_.size() && data_[k] ? &*data_[k] : nullptr;
  }
  size_t getNumOutputs() const override { return results_.size(); }
  onnx::TypeProto* getOutputType(size_t k) override { return &results_[k]; }
  bool hasOutput(size_t k) override { return operation_->has_result(k); }
  onnx::GraphInferencer* getGraphAttributeInferencer(const std::string&) override {
    return nullptr;
  }
  const onnx::SparseTensorProto* getInputSparseData(size_t) const override { return nullptr; }
  const onnx::TensorShapeProto* getSymbolicInput(size_t) const override { return nullptr; }
  std::string getDisplayName() const override { return operation_->describe(); }

  std::vector<std::optional<ir::Type>> results() const {
    std::vector<std::optional<ir::Type>> result;
    for (const onnx::TypeProto& proto : results_) result.push_back(complete(proto));
    return result;
  }

 private:
  static std::optional<ir::Type> complete(const onnx::TypeProto& proto) {
    if (!proto.has_tensor_type() || !proto.tensor_type().has_shape()) return std::nullopt;
    if (!is_supported(proto.tensor_type().elem_type())) return std::nullopt;
    ir::Type type{static_cast<ir::DataType>(proto.tensor_type().elem_type()), {}};
    for (const auto& dim : proto.tensor_type().shape().dim()) {
      if (!dim.has_dim_value() || dim.dim_value() < 0) return std::nullopt;
      type.shape.push_back(dim.dim_value());
    }
    return type;
  }

  const Operation* operation_;
  std::map<std::string, onnx::AttributeProto> attributes_;
  std::vector<std::optional<onnx::TypeProto>> types_;
  std::vector<std::optional<onnx::TensorProto>> data_;
  std::vector<onnx::TypeProto> results_;
};

std::string operand_types(const ir::Graph& graph, const Operation& operation) {
  std::string text;
  for (ValueId input : operation.inputs) {
    if (!text.empty()) text += ", ";
    text += input ? fmt::format("'{}' {}", graph.name_of(input), ir::to_string(graph.type(input)))
                  : "(none)";
  }
  return text;
}

[[noreturn]] void throw_unknown_operator(const Operation& operation) {
  if (ir::moves_data_between_ranks(operation.domain, operation.op)) {
    throw ir::already_parallel(operation.name, operation.domain + "::" + operation.op);
  }
  std::vector<std::string> known;
  for (const auto& schema : onnx::OpSchemaRegistry::get_all_schemas()) {
    if (schema.domain() == operation.domain) known.push_back(schema.Name());
  }
  Error error("node '{}' uses operator '{}{}{}', which is not known", operation.name,
              operation.domain, operation.domain.empty() ? "" : "::", operation.op);
  if (const std::string near = nearest_name(operation.op, known); !near.empty()) {
    error.note(fmt::format("the nearest known operator is '{}'", near));
  }
  throw error.help(
      "export the model with standard ONNX operators, or with a model-local function for this one");
}

// Operands and results as many as the operator has; the inference functions take that for granted.
void check_arity(const ir::Graph& graph, const Operation& operation, const onnx::OpSchema& schema) {
  const auto refuse = [&](const std::string& what) {
    throw Error("node '{}' is not valid: {}", operation.describe(), what)
        .note("its operands are " + operand_types(graph, operation))
        .help("check the model with onnx.checker.check_model, and export it again");
  };
  const auto most = static_cast<size_t>(schema.max_input());
  if (operation.inputs.size() > most) {
    refuse(fmt::format("it has {} operands, the operator {}", operation.inputs.size(), most));
  }
  for (size_t k = 0; k < schema.inputs().size(); ++k) {
    if (schema.inputs()[k].GetOption() == onnx::OpSchema::Single && !operation.input(k)) {
      refuse(fmt::format("it lacks operand {} ('{}')", k, schema.inputs()[k].GetName()));
    }
  }
  if (operation.results.size() > static_cast<size_t>(schema.max_output())) {
    refuse(fmt::format("it has {} results, the operator {}", operation.results.size(),
                       schema.max_output()));
  }
}

onnx::AttributeProto::AttributeType type_of(const ir::Attribute& attribute) {
  // In the order of the variant.
  constexpr onnx::AttributeProto::AttributeType kTypes[] = {
      onnx::AttributeProto::INT,    onnx::AttributeProto::FLOAT,  onnx::AttributeProto::STRING,
      onnx::AttributeProto::INTS,   onnx::AttributeProto::FLOATS, onnx::AttributeProto::STRINGS,
      onnx::AttributeProto::TENSOR,
  };
  static_assert(std::size(kTypes) == std::variant_size_v<ir::Attribute>);
  return kTypes[attribute.index()];
}

}  // namespace

void check_attributes(const Operation& operation) {
  const onnx::OpSchema* schema = onnx::OpSchemaRegistry::Schema(
      operation.op, static_cast<int>(operation.version), operation.domain);
  if (schema == nullptr) return;
  for (const auto& [name, value] : operation.attributes) {
    const auto found = schema->attributes().find(name);
    if (found == schema->attributes().end()) {
      throw Error("node '{}' has an attribute '{}', which the operator does not have",
                  operation.describe(), name)
          .note(fmt::format("this is operator-set version {}", operation.version))
          .help("check the model with onnx.checker.check_model, and export it again");
    }
    if (found->second.type != type_of(value)) {
      const auto name_of = [](auto type) { return onnx::AttributeProto_AttributeType_Name(type); };
      throw Error("node '{}' has an attribute '{}' of type {}", operation.describe(), name,
                  name_of(type_of(value)))
          .note(fmt::format("the operator's is of type {}", name_of(found->second.type)))
          .help("check the model with onnx.checker.check_model, and export it again");
    }
  }
}

std::string Operation::describe() const {
  return fmt::format("{}: {}{}{}", name.empty() && !results.empty() ? results[0] : name, domain,
                     domain.empty() ? "" : "::", op);
}

std::vector<std::optional<ir::Type>> infer(const ir::Graph& graph, const Operation& operation) {
  if (auto types = infer_training_operator(graph, operation)) return *std::move(types);
  register_schemas();
  const int version = operation.domain.empty() ? static_cast<int>(graph.opset) : 1;
  const onnx::OpSchema* schema =
      onnx::OpSchemaRegistry::Schema(operation.op, version, operation.domain);
  if (schema == nullptr) throw_unknown_operator(operation);
  if (schema->Deprecated()) {
    throw Error("node '{}' uses operator '{}', which ONNX has withdrawn", operation.name,
                operation.op)
        .note("the model's operator set has no such operator any more")
        .help("export the model again at a newer operator-set version");
  }
  check_arity(graph, operation, *schema);
  NodeContext context(graph, operation);
  try {
    schema->GetTypeAndShapeInferenceFunction()(context);
    schema->CheckInputOutputType(context);
  } catch (const std::exception& failure) {
    throw Error("node '{}' is not valid: {}", operation.describe(), failure.what())
        .note("its operands are " + operand_types(graph, operation))
        .help(
            "check the model with onnx.checker.check_model(model, full_check=True), and export "
            "it again");
  }
  return context.results();
}

std::vector<ir::Type> infer_types(const ir::Graph& graph, const ir::Node& node) {
  Operation operation{.name = node.name,
                      .domain = node.domain,
                      .op = node.op,
                      .version = graph.opset,
                      .inputs = node.inputs,
                      .attributes = node.attributes,
                      .results = {}};
  const bool pending =
      std::ranges::none_of(node.outputs, [](ValueId output) { return output.valid(); });
  for (size_t k = 0; k < node.outputs.size(); ++k) {
    operation.results.push_back(pending || node.outputs[k] ? fmt::format("result {}", k) : "");
  }
  const auto types = infer(graph, operation);
  std::vector<ir::Type> result(node.outputs.size());
  for (size_t k = 0; k < result.size(); ++k) {
    if (!operation.has_result(k)) continue;
    if (k >= types.size() || !types[k]) {
      throw Error("the shape of result {} of node '{}' cannot be inferred", k, operation.describe())
          .note("its operands are " + operand_types(graph, operation))
          .help("bind the symbolic dimensions with --dim NAME=VALUE, or export with fixed shapes");
    }
    result[k] = *types[k];
  }
  return result;
}

}  // namespace autosp::onnx_io

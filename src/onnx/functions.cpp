#include "onnx/functions.h"

#include "onnx/proto.h"

namespace autosp::onnx_io {

namespace {

constexpr char kSeparator = '_';

void add_constant(const onnx::TensorProto& tensor, onnx::FunctionProto* function) {
  auto* node = function->add_node();
  node->set_op_type("Constant");
  node->add_output(tensor.name());
  auto* value = node->add_attribute();
  value->set_name("value");
  value->set_type(onnx::AttributeProto::TENSOR);
  *value->mutable_t() = tensor;
  value->mutable_t()->clear_name();
}

// The body's inputs and outputs are called x0, x1, ... and y0, y1, ... by position in the node.
onnx::FunctionProto to_function(const ir::Node& node, const ir::Graph& body) {
  const onnx::ModelProto model = export_proto(body);
  onnx::FunctionProto function;
  function.set_domain(node.domain);
  function.set_name(node.op);
  *function.mutable_opset_import() = model.opset_import();
  for (size_t k = 0; k < node.inputs.size(); ++k) function.add_input(fmt::format("x{}", k));
  for (size_t k = 0; k < node.outputs.size(); ++k) function.add_output(fmt::format("y{}", k));
  for (const auto& [name, attribute] : node.attributes) function.add_attribute(name);
  for (const auto& tensor : model.graph().initializer()) add_constant(tensor, &function);
  for (size_t k = 0; k < node.outputs.size(); ++k) {
    if (node.outputs[k]) continue;  // an absent result has to be something, too
    add_constant(to_proto(ir::Tensor::scalar(ir::DataType::kFloat32, 0), fmt::format("y{}", k)),
                 &function);
  }
  for (const auto& inner : model.graph().node()) *function.add_node() = inner;
  return function;
}

}  // namespace

std::string Functions::signature(const ir::Node& node) const {
  std::string text = node.domain + "::" + node.op;
  for (const auto& [name, attribute] : node.attributes) {
    text += ";" + to_proto(name, attribute).SerializeAsString();
  }
  for (ValueId input : node.inputs) {
    text += "|" + (input ? to_string(graph_.type(input)) : "-");
    if (!input || !dim_name_) continue;
    for (size_t k = 0; k < graph_.type(input).rank(); ++k) text += "," + dim_name_(input, k);
  }
  for (ValueId output : node.outputs) text += output ? "+" : "-";
  return text;
}

std::string Functions::name_of(const ir::Node& node, onnx::FunctionProto function) {
  const auto [entry, is_new] = written_.try_emplace(function.SerializeAsString());
  if (!is_new) return entry->second;
  const int number = counts_[node.op]++;
  entry->second = number == 0 ? node.op : fmt::format("{}{}{}", node.op, kSeparator, number);
  function.set_name(entry->second);
  functions_.push_back(std::move(function));
  return entry->second;
}

void Functions::bind(const ir::Node& node, onnx::NodeProto* proto) {
  if (!body_ || node.domain.empty()) return;
  const auto [entry, is_new] = names_.try_emplace(signature(node));
  if (is_new) {
    const auto body = body_(graph_, node);
    if (!body) {
      names_.erase(entry);
      return;
    }
    entry->second = name_of(node, to_function(node, *body));
  }
  proto->set_op_type(entry->second);
}

void Functions::write(onnx::ModelProto* model) const {
  for (const auto& function : functions_) *model->add_functions() = function;
}

std::string operator_of_function(const std::string& name) {
  const size_t end = name.find_last_not_of("0123456789");
  if (end == std::string::npos || end + 1 == name.size() || name[end] != kSeparator) return name;
  return name.substr(0, end);
}

}  // namespace autosp::onnx_io

#include "transforms/widen_floats.h"

#include "ir/builder.h"

namespace autosp::transforms {

using ir::DataType;
using ir::Graph;
using ir::Node;
using ir::Tensor;
using ir::Type;

namespace {

DataType widened(DataType dtype) { return is_floating(dtype) ? DataType::kFloat64 : dtype; }

Type widened(const Type& type) { return {widened(type.dtype), type.shape}; }

Tensor widened(const Tensor& tensor) {
  if (widened(tensor.dtype()) == tensor.dtype()) return tensor;
  Tensor result(widened(tensor.type()));
  auto to = result.mutable_values<double>();
  for (int64_t k = 0; k < tensor.num_elements(); ++k) {
    to[static_cast<size_t>(k)] = tensor.value_as_double(k);
  }
  return result;
}

// Where a node says itself what type it gives.
ir::Attributes widened(const Node& node) {
  ir::Attributes attributes = node.attributes;
  for (const char* name : {"to", "dtype"}) {
    if (!attributes.has(name)) continue;
    const auto dtype = static_cast<DataType>(attributes.get_int(name, 0));
    attributes.set(name, static_cast<int64_t>(widened(dtype)));
  }
  if (const Tensor* value = attributes.get_tensor("value"))
    attributes.set("value", widened(*value));
  return attributes;
}

}  // namespace

Graph widen_floats(const Graph& graph) {
  Graph result;
  result.name = graph.name;
  result.opset = graph.opset;
  ir::Builder build(result);
  std::vector<ValueId> wide(graph.values().size());
  for (ValueId input : graph.inputs()) {
    const ir::Value& value = graph.value(input);
    const ValueId same = result.add_input(value.name, value.type);
    wide[input.index()] = build.cast(same, widened(value.type.dtype));
  }
  for (size_t v = 0; v < wide.size(); ++v) {
    const ir::Value& value = graph.values()[v];
    if (value.kind == ir::ValueKind::kConstant) {
      wide[v] = result.add_constant(widened(value.constant), value.name);
    } else if (value.kind == ir::ValueKind::kExternal) {
      const ValueId same = result.add_external(value.name, value.type, value.external);
      wide[v] = build.cast(same, widened(value.type.dtype));
    }
  }
  for (const Node& node : graph.nodes()) {
    std::vector<ValueId> inputs;
    for (ValueId input : node.inputs) inputs.push_back(input ? wide[input.index()] : ValueId());
    std::vector<Type> types;
    std::vector<std::string> names;
    for (ValueId output : node.outputs) {
      types.push_back(output ? widened(graph.type(output)) : Type{});
      names.push_back(output ? graph.name_of(output) : "");
    }
    const NodeId copy = result.add_node(node.op, std::move(inputs), std::move(types), widened(node),
                                        node.domain, std::move(names), node.name);
    for (size_t k = 0; k < node.outputs.size(); ++k) {
      if (node.outputs[k]) wide[node.outputs[k].index()] = result.node(copy).outputs[k];
    }
  }
  for (const ir::Output& output : graph.outputs()) {
    result.add_output(output.name, wide[output.value.index()]);
  }
  ir::verify(result);
  return result;
}

}  // namespace autosp::transforms

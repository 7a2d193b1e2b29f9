#include "transforms/canonicalize/node_key.h"

namespace autosp::transforms {

using ir::Graph;
using ir::Node;

namespace {

void append_bytes(std::string& key, const void* data, size_t size) {
  key.append(reinterpret_cast<const char*>(&size), sizeof(size));
  key.append(static_cast<const char*>(data), size);
}

void append(std::string& key, const std::string& text) {
  append_bytes(key, text.data(), text.size());
}

void append(std::string& key, const ir::Tensor& tensor) {
  append(key, to_string(tensor.type()));
  append_bytes(key, tensor.bytes().data(), tensor.bytes().size());
}

void append(std::string& key, const ir::Attribute& attribute) {
  key.push_back(static_cast<char>(attribute.index()));
  std::visit(
      [&](const auto& value) {
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_arithmetic_v<T>) {
          append_bytes(key, &value, sizeof(value));
        } else if constexpr (std::is_same_v<T, std::string> || std::is_same_v<T, ir::Tensor>) {
          append(key, value);
        } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          for (const std::string& item : value) append(key, item);
        } else {
          append_bytes(key, value.data(), value.size() * sizeof(value[0]));
        }
      },
      attribute);
}

}  // namespace

std::string node_key(const Graph& graph, const Node& node, const std::vector<ValueId>& operands) {
  std::string key;
  append(key, node.domain);
  append(key, node.op);
  for (ValueId operand : operands) {
    const size_t index = operand ? operand.index() : ~size_t{0};
    append_bytes(key, &index, sizeof(index));
  }
  for (ValueId output : node.outputs) append(key, output ? to_string(graph.type(output)) : "");
  for (const auto& [name, attribute] : node.attributes) {
    append(key, name);
    append(key, attribute);
  }
  return key;
}

std::string constant_key(const ir::Tensor& tensor) {
  std::string key;
  append(key, tensor);
  return key;
}

}  // namespace autosp::transforms
